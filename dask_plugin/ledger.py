"""The broker's decisions: who reads a file from the archive, who pulls it from whom, who waits.

No I/O and no Dask: calls take what workers tell, and return what is to be told to them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import chain

Worker = str
Node = str
# To a worker: ("fetch", file, None), ("pull", file, from this worker) or ("wait", file, None).
Word = tuple[Worker, tuple[str, Hashable, Worker | None]]

PULLS_PER_NODE = 4
# Files that nobody brings just now are forgotten beyond this number, the oldest first.
REMEMBERED = 100_000


@dataclass
class File:
    """What is known of one file."""

    holders: set[Node] = field(default_factory=set)
    reader: Worker | None = None  # who reads it from the archive now
    is_shared: bool = False  # by its reader, which gives what it has already
    pulls: dict[Worker, tuple[Node, Worker]] = field(default_factory=dict)
    waiting: OrderedDict[Worker, bool] = field(default_factory=OrderedDict)  # in background?

    @property
    def is_idle(self) -> bool:
        """Whether nobody brings it, or wants to."""
        return not (self.reader or self.pulls or self.waiting)


class Ledger:
    """Which node holds which file, and who brings what. Not thread-safe.

    Parameters
    ----------
    archive_reads : int
        How many files the whole cluster reads from the archive at a time.
    """

    def __init__(self, archive_reads: int) -> None:
        self.archive_reads = archive_reads
        self._files: OrderedDict[Hashable, File] = OrderedDict()
        self._nodes: dict[Worker, Node] = {}
        self._reading = 0
        self._pulling: dict[Node, int] = defaultdict(int)  # from these
        # Files whose next reader waits for others to end: foreground, background.
        self._queues: tuple[OrderedDict[Hashable, None], ...] = (OrderedDict(), OrderedDict())
        # Files that wait until one may be pulled from a node; some of them do no longer.
        self._stuck: dict[Node, OrderedDict[Hashable, None]] = defaultdict(OrderedDict)

    # --- what workers tell ------------------------------------------------------------------

    def join(self, worker: Worker, node: Node) -> None:
        """Learn of a worker, and of the node whose cache it uses."""
        self._nodes[worker] = node

    def want(
        self, worker: Worker, file: Hashable, *, background: bool, lost: Worker | None = None
    ) -> list[Word]:
        """A worker wants a file that its node has not got. Asking again is no harm.

        ``lost`` is a worker from which it could not pull the file.
        """
        node = self._nodes.get(worker)
        if node is None:
            return [(worker, ("fetch", file, None))]
        entry = self._entry(file)
        entry.holders.discard(node)  # it has evicted the file
        source = self._source_of(entry, worker)
        if lost is not None:
            self._release(entry, worker)
            if lost == entry.reader:  # it shows no life, or has failed
                self._release(entry, lost)
            entry.holders.discard(self._nodes.get(lost, ""))
        if entry.reader == worker:
            return [(worker, ("fetch", file, None))]
        if worker in entry.pulls:
            return [(worker, ("pull", file, entry.pulls[worker][1]))]
        entry.waiting[worker] = background
        words = [*self._go_on(file), *self._use_pulls(source)]
        if worker in entry.waiting:
            words.append((worker, ("wait", file, None)))
        return words

    def shares(self, worker: Worker, file: Hashable) -> list[Word]:
        """A worker that reads a file from the archive can give others what it has of it."""
        entry = self._files.get(file)
        if entry is None or entry.reader != worker:
            return []
        entry.is_shared = True
        return self._go_on(file)

    def ended(self, worker: Worker, file: Hashable, *, is_here: bool) -> list[Word]:
        """A worker has the file in its cache, or does not bring it any more."""
        entry = self._entry(file)
        entry.waiting.pop(worker, None)
        source = self._source_of(entry, worker)
        self._release(entry, worker)
        if is_here and worker in self._nodes:
            entry.holders.add(self._nodes[worker])
        return [*self._go_on(file), *self._use_pulls(source), *self._use_slots()]

    def leave(self, worker: Worker) -> list[Word]:
        """A worker has gone; what it was bringing others bring."""
        node = self._nodes.pop(worker, None)
        is_empty = node not in self._nodes.values()
        touched = dict.fromkeys(chain(*self._stuck.values()))
        self._stuck.clear()
        for file, entry in self._files.items():
            if is_empty and node is not None:
                entry.holders.discard(node)
            if entry.reader == worker or worker in entry.pulls or worker in entry.waiting:
                entry.waiting.pop(worker, None)
                self._release(entry, worker)
                touched[file] = None
        return [*(word for file in touched for word in self._go_on(file)), *self._use_slots()]

    # --- what others ask --------------------------------------------------------------------

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(set(self._nodes.values()))

    @property
    def workers(self) -> list[Worker]:
        """All workers that have joined."""
        return list(self._nodes)

    def some_of_each_node(self, count: int) -> list[Worker]:
        """Return at the most so many workers of each node."""
        chosen: dict[Node, list[Worker]] = defaultdict(list)
        for worker, node in self._nodes.items():
            if len(chosen[node]) < count:
                chosen[node].append(worker)
        return [worker for workers in chosen.values() for worker in workers]

    def nearest(self, files: Iterable[tuple[Hashable, int]]) -> set[Worker]:
        """Return the workers of the nodes that hold the most bytes; none if no node has a file.

        ``files`` are what a task needs, with their bytes.
        """
        held: dict[Node, int] = defaultdict(int)
        for file, size in files:
            entry = self._files.get(file)
            for node in entry.holders if entry is not None else ():
                held[node] += size
        most = max(held.values(), default=0)
        return {worker for worker, node in self._nodes.items() if held.get(node) == most}

    # --- decisions --------------------------------------------------------------------------

    def _go_on(self, file: Hashable) -> list[Word]:
        """Let those who wait for a file pull it, or one of them read it."""
        entry = self._files.get(file)
        if entry is None:
            return []
        words: list[Word] = []
        for worker in sorted(entry.waiting, key=lambda one: entry.waiting[one]):
            source = self._source_for(entry)
            if source is None:
                break
            del entry.waiting[worker]
            entry.pulls[worker] = (self._nodes[source], source)
            self._pulling[self._nodes[source]] += 1
            words.append((worker, ("pull", file, source)))
        if entry.waiting:
            for node in entry.holders:
                self._stuck[node][file] = None
            if entry.reader is not None and entry.is_shared:
                self._stuck[self._nodes[entry.reader]][file] = None
        reads = bool(entry.waiting) and not (entry.holders or entry.pulls or entry.reader)
        in_background = all(entry.waiting.values())
        for background, queue in enumerate(self._queues):
            if not reads or background != in_background:
                queue.pop(file, None)
        if reads:
            self._queues[in_background][file] = None
            words.extend(self._use_slots())
        return words

    def _source_for(self, entry: File) -> Worker | None:
        """Return a worker of the least busy node that holds the file, None when all are busy.

        Where no node has all of it, that is the one which reads it, if it gives what it has.
        """
        free = [node for node in entry.holders if self._pulling[node] < PULLS_PER_NODE]
        if not free:
            reader = entry.reader if entry.is_shared else None
            is_free = reader is not None and self._pulling[self._nodes[reader]] < PULLS_PER_NODE
            return reader if is_free else None
        best = min(free, key=lambda node: (self._pulling[node], node))
        return next((one for one, node in self._nodes.items() if node == best), None)

    def _source_of(self, entry: File, worker: Worker) -> Node | None:
        """Return the node from which a worker pulls a file, if it does."""
        return entry.pulls[worker][0] if worker in entry.pulls else None

    def _use_pulls(self, node: Node | None) -> list[Word]:
        """Let files that wait for a node be pulled from it, as far as the limit allows."""
        words: list[Word] = []
        if node is None:
            return words
        for _ in range(len(self._stuck[node])):
            if self._pulling[node] >= PULLS_PER_NODE:
                break
            file, _ = self._stuck[node].popitem(last=False)
            words.extend(self._go_on(file))
        return words

    def _use_slots(self) -> list[Word]:
        """Let files be read from the archive as far as the limit allows, foreground first."""
        words: list[Word] = []
        while self._reading < self.archive_reads and (queue := self._queues[0] or self._queues[1]):
            file, _ = queue.popitem(last=False)
            entry = self._files[file]
            if not entry.waiting:
                continue
            worker = min(entry.waiting, key=lambda one: entry.waiting[one])
            del entry.waiting[worker]
            entry.reader = worker
            self._reading += 1
            words.append((worker, ("fetch", file, None)))
        return words

    def _release(self, entry: File, worker: Worker) -> None:
        if entry.reader == worker:
            entry.reader, entry.is_shared = None, False
            self._reading -= 1
        if worker in entry.pulls:
            node, _ = entry.pulls.pop(worker)
            self._pulling[node] -= 1

    def _entry(self, file: Hashable) -> File:
        entry = self._files.setdefault(file, File())
        self._files.move_to_end(file)
        if len(self._files) > REMEMBERED:
            oldest = next(old for old, one in self._files.items() if one.is_idle or one is entry)
            if oldest != file:
                del self._files[oldest]
        return entry
