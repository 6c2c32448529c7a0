"""What users see of staging: counters on the Prometheus endpoint, and a plot."""

from __future__ import annotations

import re
import sys
from urllib.request import urlopen

import pytest

from dask_plugin import StagingPlugin, plot, stats
from dask_plugin.plotting import STEPS, draw, spread

from .dask_cluster import len_of

pytest.importorskip("distributed")


def metrics_of(port: int) -> dict[str, float]:
    text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    found = re.findall(r"^(pyremotedata_[a-z_]+(?:{[^}]*})?) ([0-9.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if "created" not in name}


@pytest.fixture
def client(served):
    return served()


def test_the_workers_endpoint_counts_files_and_bytes(client, remote_file):
    pytest.importorskip("prometheus_client")
    file = remote_file("a", bytes(1000))
    for _ in range(2):
        assert client.submit(len_of, file, pure=False).result() == 1000
    (port,) = client.run(lambda dask_worker: dask_worker.http_server.port).values()
    found = metrics_of(port)
    assert found['pyremotedata_files_total{source="archive"}'] == 1
    assert found['pyremotedata_bytes_total{source="archive"}'] == 1000
    assert found['pyremotedata_files_total{source="node"}'] == 1
    assert found['pyremotedata_files_total{source="peer"}'] == 0
    assert found["pyremotedata_waited_seconds_total"] > 0
    client.unregister_worker_plugin(StagingPlugin.name)
    assert metrics_of(port) == {}


def test_workers_that_cannot_answer_are_left_out_of_the_counts(served):
    client = served(workers=2)
    lame, sound = sorted(client.nthreads())
    # As if the package were not there.
    client.run(lambda: sys.modules.update({"dask_plugin.report": None}), workers=[lame])
    assert list(stats(client)) == [sound]


def test_a_plot_is_drawn_from_the_events(client, remote_file, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no events"):
        plot(client, tmp_path / "none.png")
    assert client.submit(len_of, remote_file("a", bytes(100_000))).result() == 100_000
    plot(client, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    plot(client, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "</svg>" in text


def test_events_that_are_not_ours_are_not_drawn(tmp_path):
    with pytest.raises(ValueError, match="no events"):
        draw([(0, "something"), (0, {"action": "other"})], tmp_path / "plot.png")


def test_amounts_are_spread_over_their_time_and_none_is_lost():
    spans = [(0.0, 10.0, 100.0), (2.5, 2.6, 7.0), (9.999, 10.0, 3.0), (5.0, 5.0, 1.0)]
    rates = spread(spans, 10.0 / STEPS)
    assert sum(rates) * 10.0 / STEPS == pytest.approx(111.0)
    assert rates[0] == pytest.approx(10.0)
