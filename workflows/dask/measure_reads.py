"""Measure the reads of every sample of a remote directory, on a cluster of worker processes.

    python measure_reads.py sftp://user@host/project/reads MEASURES.tsv [--report REPORT.json]

Each task takes a `RemoteFile` and opens it as the local file that it is by then.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import dask
from dask.distributed import Client, LocalCluster

from dask_plugin import RemoteFile, StagingPlugin, stats
from pyremotedata_core import Remote
from workflows import fastq

START_TIMEOUT_S = 60


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reads", help="URL of the directory with SAMPLE.fastq.gz files")
    parser.add_argument("table", type=Path, help="where the table goes")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--report", type=Path, help="where the sum of what the workers count goes, as JSON"
    )
    chosen = parser.parse_args(arguments)

    with Remote(chosen.reads) as remote:
        names = [name for name in remote.ls() if name.endswith(".fastq.gz")]
        urls = [str(remote.locate(name)) for name in names]
    with (
        LocalCluster(
            n_workers=chosen.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster, timeout=START_TIMEOUT_S) as client,
    ):
        client.register_plugin(StagingPlugin())
        measures = measure_all(client, urls)
        staged = stats(client)
    fastq.write_table(measures, chosen.table)
    if chosen.report:
        chosen.report.write_text(json.dumps(staged.total))
    return 0


def measure_all(client: Client, urls: list[str]) -> list[fastq.Measures]:
    """Measure one file per task."""
    measure = dask.delayed(fastq.measure)
    tasks = [measure(RemoteFile(url), fastq.sample_name(url)) for url in urls]
    return client.gather(client.compute(tasks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
