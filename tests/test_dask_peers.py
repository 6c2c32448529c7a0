"""One read per cluster: nodes pull files from each other, and from the archive when that fails."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dask_plugin import StagingPlugin, glob, stage_out, stats
from dask_plugin.chunks import Place, Sink

from .dask_nodes import content, on_each, through, workers_of
from .processes import below
from .waiting import PATIENCE_S, wait_until, wait_until_stalled

pytest.importorskip("distributed")


def assert_read_once(archive, data) -> None:
    wait_until(lambda: archive.bytes_read("large") >= len(data), "the server has closed the file")
    assert archive.bytes_read("large") == len(data)


def test_all_nodes_get_a_file_that_the_archive_sends_once(archive, start_nodes):
    file, data = archive.make("large", 20_000_000)
    client = start_nodes(4)
    for task in on_each(client, content, file):
        assert task.result() == data
    assert_read_once(archive, data)
    total = stats(client).total
    assert (total["files"], total["peer_files"]) == (1, 3)
    assert (total["archive_bytes"], total["peer_bytes"]) == (len(data), 3 * len(data))
    events = [event for _, event in client.get_events("pyremotedata")]
    sources = [event["source"] for event in events if event["action"] == "opened"]
    assert sorted(sources) == ["archive", "peer", "peer", "peer"]


def test_many_files_are_read_once_each(archive, start_nodes):
    made = [archive.make(f"f{number}", 100_000 * (number % 3)) for number in range(30)]
    client = start_nodes(4, per_node=2, archive_reads=2)
    tasks = [task for file, _ in made for task in on_each(client, content, file)]
    wanted = [data for _, data in made for _ in range(4)]
    got = client.gather(tasks)
    assert [len(one) for one in got] == [len(one) for one in wanted]
    assert got == wanted
    total = stats(client).total
    assert total["archive_bytes"] == sum(len(data) for _, data in made)
    assert total["files"] + total["peer_files"] == 60
    assert total["files"] == 30


def test_a_pulled_file_is_an_entry_like_any_other(archive, start_nodes, tmp_path):
    file, data = archive.make("a", 100_000)
    client = start_nodes(2)
    first, second = (task.result() for task in on_each(client, content, file))
    assert first == second == data
    for node in ("node0", "node1"):
        (path,) = (tmp_path / node).glob("*/files/*/a")
        assert path.read_bytes() == data
        assert int(path.stat().st_mtime) == file.mtime
        assert path.stat().st_mode & 0o777 == 0o444
        assert not any((tmp_path / node).glob("*/incoming/*"))


def kill_in_mid_pull(client, source, pid):
    """Have a worker kill a process when it is asked for the third chunk of a file."""

    def prepare(dask_worker):
        read = dask_worker.handlers["pyremotedata_read"]
        chunks = []

        async def read_and_kill(**asked):
            chunks.append(asked)
            if len(chunks) == 3:
                os.kill(pid, signal.SIGKILL)
            return await read(**asked)

        dask_worker.handlers["pyremotedata_read"] = read_and_kill

    client.run(prepare, workers=[source])


def test_a_source_that_dies_mid_pull_is_replaced_by_the_archive(archive, start_nodes, tmp_path):
    file, data = archive.make("large", 30_000_000)
    client = start_nodes(2)
    source, puller = workers_of(client)
    assert client.submit(content, file, workers=[source]).result() == data
    pids = client.run(os.getpid)
    kill_in_mid_pull(client, source, pids[source])
    task = client.submit(content, file, workers=[puller], pure=False, allow_other_workers=False)
    assert task.result() == data
    wait_until(lambda: pids[source] not in client.run(os.getpid).values(), "the source is dead")
    total = stats(client, workers=[puller]).total
    assert (total["files"], total["peer_files"]) == (1, 0)
    assert not any(tmp_path.glob("node*/*/incoming/*"))


@pytest.mark.full
def test_a_worker_that_dies_while_it_pulls_leaves_nothing(archive, start_nodes, tmp_path):
    file, data = archive.make("large", 30_000_000)
    client = start_nodes(2)
    source, puller = workers_of(client)
    assert client.submit(content, file, workers=[source]).result() == data
    kill_in_mid_pull(client, source, client.run(os.getpid, workers=[puller])[puller])
    task = client.submit(content, file, workers=[puller], pure=False, allow_other_workers=True)
    assert task.result() == data
    client.wait_for_workers(2, timeout=PATIENCE_S)
    assert [task.result() for task in on_each(client, content, file)] == [data] * 2
    wait_until(lambda: not any(tmp_path.glob("node*/*/incoming/*")), "nothing is left")
    assert_read_once(archive, data)


def test_another_holder_takes_over_from_one_that_fails(archive, start_nodes):
    file, data = archive.make("large", 10_000_000)
    client = start_nodes(3)
    workers = workers_of(client)
    for worker in workers[:2]:
        assert client.submit(content, file, workers=[worker], pure=False).result() == data

    def refuse(dask_worker):
        async def read(**_):
            return {"missing": True}

        dask_worker.handlers["pyremotedata_read"] = read

    client.run(refuse, workers=workers[:1])
    assert client.submit(content, file, workers=workers[2:], pure=False).result() == data
    assert stats(client).total["files"] == 1


def test_bytes_that_change_on_the_way_are_not_taken(archive, start_nodes):
    file, data = archive.make("a", 100_000)
    client = start_nodes(2)
    source, puller = workers_of(client)
    assert client.submit(content, file, workers=[source]).result() == data

    def corrupt(dask_worker):
        from distributed.protocol import to_serialize

        read = dask_worker.handlers["pyremotedata_read"]

        async def corrupted(**asked):
            answer = await read(**asked)
            return {**answer, "data": to_serialize(bytes(asked["length"]))}

        dask_worker.handlers["pyremotedata_read"] = corrupted

    client.run(corrupt, workers=[source])
    assert client.submit(content, file, workers=[puller], pure=False).result() == data
    assert stats(client, workers=[puller]).total["files"] == 1


def note_answers(client, change=dict):
    """Have the workers note what they answer each other, and change it."""

    def prepare(dask_worker):
        give = dask_worker.handlers["pyremotedata_read"]
        dask_worker.answers = []

        async def noting(**asked):
            answer = await give(**asked)
            dask_worker.answers.append(sorted(answer))
            return change(answer)

        dask_worker.handlers["pyremotedata_read"] = noting

    client.run(prepare)


def answers(client) -> list[list[str]]:
    answers = client.run(lambda dask_worker: dask_worker.answers)
    return [answer for each in answers.values() for answer in each if answer != ["arrived"]]


def test_on_one_host_a_file_is_copied_from_one_cache_to_the_other(archive, start_nodes, tmp_path):
    file, data = archive.make("large", 10_000_000)
    client = start_nodes(3, one_host=True)
    note_answers(client)
    assert [task.result() for task in on_each(client, content, file)] == [data] * 3
    assert answers(client) == [["place"]] * 6
    assert_read_once(archive, data)
    assert stats(client).total["peer_bytes"] == 2 * len(data)
    inodes = {path.stat().st_ino for path in tmp_path.glob("node*/*/files/*/large")}
    assert len(inodes) == 3, "each cache has a file of its own"


def test_the_workers_of_a_node_share_a_helper_and_its_sessions(archive, start_nodes):
    made = [archive.make(f"f{number}", 200_000) for number in range(40)]
    client = start_nodes(4, per_node=4, one_host=True)
    tasks = client.map(content, [file for file, _ in made])
    assert client.gather(tasks) == [data for _, data in made]
    assert len(below("pyremotedata_core.helper")) == 1
    assert archive.sessions() <= 4
    assert stats(client).total["files"] == 40


@pytest.mark.parametrize("wrong", ["missing", "other", "pipe"])
def test_what_cannot_be_copied_on_one_host_is_sent(archive, start_nodes, tmp_path, wrong):
    """Containers may share a kernel, and see other files under the same names."""
    file, data = archive.make("large", 10_000_000)
    client = start_nodes(2, one_host=True)
    other = tmp_path / "other"
    if wrong == "other":
        other.write_bytes(bytes(len(data)))
    elif wrong == "pipe":
        os.mkfifo(other)
    path = os.fsencode(other)
    note_answers(client, lambda answer: place_changed(answer, path))
    assert [task.result() for task in on_each(client, content, file)] == [data] * 2
    assert ["checksum", "data"] in answers(client)
    assert stats(client).total["peer_bytes"] == len(data)


def test_a_file_that_cannot_be_read_is_not_this_nodes_error(tmp_path):
    """Whose disk fails is not known to who copies; the giver's is to be asked for its bytes."""
    unreadable = b"/proc/self/mem"  # a regular file; its first page is an error
    found = os.stat(unreadable)
    sink = Sink(str(tmp_path / "copy"))
    sink.open()
    try:
        assert not sink.copy(Place(unreadable, found.st_dev, found.st_ino), 0, 4096)
    finally:
        sink.close(keep=False)


def place_changed(answer: dict, path: bytes) -> dict:
    return {"place": (path, *answer["place"][1:])} if "place" in answer else answer


def test_a_reader_that_dies_is_replaced(archive, relay, start_nodes):
    file, data = archive.make("large", 5_000_000)
    file = through(relay, file)
    client = start_nodes(2)
    reader, other = workers_of(client)
    relay.stall(after_bytes=1_000_000)
    first = client.submit(content, file, workers=[reader], allow_other_workers=True)
    wait_until_stalled(relay)
    second = client.submit(content, file, workers=[other], pure=False)
    pid = client.run(os.getpid, workers=[reader])[reader]
    os.kill(pid, signal.SIGKILL)
    relay.resume()
    assert second.result() == data
    assert first.result() == data


def test_workers_connect_while_a_client_lists(archive, start_nodes):
    archive.make("a", 1000)
    start_nodes(3, per_node=3)
    (file,) = glob(archive.server.url("*"), ssh_config=str(archive.server.ssh_config))
    assert file.name == "a"
    wait_until(lambda: archive.sessions() == 3, "two workers of the node, and the client, connect")


def test_a_missing_file_is_an_error_on_every_node(archive, start_nodes):
    file, _ = archive.make("a", 10)
    (archive.server.root / "a").unlink()
    client = start_nodes(3)
    for task in on_each(client, content, file):
        with pytest.raises(FileNotFoundError):
            task.result()

    def nodes_and_reading(dask_scheduler):
        ledger = dask_scheduler.plugins["pyremotedata-broker"].ledger
        return ledger.nodes, ledger._reading

    assert client.run_on_scheduler(nodes_and_reading) == (3, 0)


def test_without_a_broker_each_node_reads_from_the_archive(archive, start_nodes):
    file, data = archive.make("a", 100_000)
    client = start_nodes(2, plugin=False)

    def refuse(dask_scheduler):
        async def register(**_):
            raise ValueError("not here")

        dask_scheduler.handlers["register_scheduler_plugin"] = register

    client.run_on_scheduler(refuse)
    client.register_plugin(StagingPlugin(ssh_config=str(archive.server.ssh_config)))
    assert [task.result() for task in on_each(client, content, file)] == [data] * 2
    assert stats(client).total["files"] == 2


def test_a_broker_that_says_nothing_is_done_without(archive, start_nodes):
    file, data = archive.make("a", 100_000)
    client = start_nodes(2)

    def fall_silent(dask_scheduler):
        dask_scheduler.stream_handlers["pyremotedata-ask"] = lambda **_: None

    def be_impatient():
        from dask_plugin import peers

        peers.ANSWER_S = 0.5

    client.run_on_scheduler(fall_silent)
    client.run(be_impatient)
    assert [task.result() for task in on_each(client, content, file)] == [data] * 2


def test_workers_grow_little_and_their_loops_go_on_while_they_pull(archive, start_nodes):
    size = 200_000_000
    file, _ = archive.make("large", size)
    client = start_nodes(3)

    def length(file):
        return os.stat(file).st_size

    def watch(dask_worker):
        import threading

        import psutil

        process = psutil.Process()
        seen = dask_worker.seen_bytes = [process.memory_info().rss]

        def look():
            while True:
                seen.append(process.memory_info().rss)
                time.sleep(0.01)

        threading.Thread(target=look, daemon=True).start()

    client.run(watch)
    tasks = on_each(client, length, file)
    answers = 0
    while not all(task.done() for task in tasks):
        assert len(client.run(os.getpid)) == 3  # their event loops answer
        answers += 1
    assert [task.result() for task in tasks] == [size] * 3
    assert answers > 3
    grown = client.run(lambda dask_worker: max(dask_worker.seen_bytes) - dask_worker.seen_bytes[0])
    assert max(grown.values()) < 64 * 2**20
    assert stats(client).total["archive_bytes"] == size


def test_registering_anew_ends_pulls_well(archive, start_nodes):
    file, data = archive.make("large", 60_000_000)
    client = start_nodes(2)
    source, puller = workers_of(client)
    assert client.submit(content, file, workers=[source]).result() == data
    task = client.submit(content, file, workers=[puller], pure=False)
    wait_until(lambda: "'executing'" in str(states(client)[puller]), "the task has begun")
    for _ in range(2):
        client.register_plugin(StagingPlugin(ssh_config=str(archive.server.ssh_config)))
    assert task.result() == data
    again, _ = archive.make("again", 1000)
    assert {one.result() for one in on_each(client, len_of, again)} == {1000}
    assert stats(client).total["peer_files"] == 1


def len_of(file) -> int:
    return len(content(file))


def states(client) -> dict:
    return client.run(lambda dask_worker: [task.state for task in dask_worker.state.tasks.values()])


def test_an_output_is_pulled_from_the_node_that_made_it(archive, start_nodes):
    client = start_nodes(2)
    maker, reader = workers_of(client)

    def write(url):
        with stage_out(url) as out:
            out.path.write_bytes(b"made" * 1000)
        return out.file

    file = client.submit(write, archive.server.url("out"), workers=[maker])
    assert client.submit(content, file, workers=[reader]).result() == b"made" * 1000
    assert (archive.server.root / "out").read_bytes() == b"made" * 1000
    total = stats(client).total
    assert (total["files"], total["peer_files"]) == (0, 1)
