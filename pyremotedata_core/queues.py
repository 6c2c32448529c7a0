"""Queues: the operations that wait for a session of their server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .transports.base import Operation, PoolSession

SMALL_AHEAD = 64  # small transfers that go before one of the others


class Queues:
    """Questions, before small transfers, before others, before what may come later.

    Each in its order, but one of the others has its turn after `SMALL_AHEAD` small ones.

    Attributes
    ----------
    load_bytes : int
        Bytes that the waiting operations will move.

    Notes
    -----
    Belongs to the loop's thread.
    """

    def __init__(self) -> None:
        self.load_bytes = 0
        self._queues: tuple[deque[Operation], ...] = tuple(deque() for _ in range(4))
        self._ahead = 0  # small ones since the last turn of another

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues)

    def append(self, operation: Operation, *, background: bool = False) -> None:
        """Queue an operation behind its like."""
        self._queues[-1 if background else _rank(operation)].append(operation)
        self.load_bytes += operation.load_bytes

    def put_back(self, operation: Operation) -> None:
        """Queue an operation before its like."""
        self._queues[_rank(operation)].appendleft(operation)
        self.load_bytes += operation.load_bytes

    def remove(self, operation: Operation) -> bool:
        """Take an operation out; return whether it was there."""
        for queue in self._queues:
            if operation in queue:
                queue.remove(operation)
                self.load_bytes -= operation.load_bytes
                return True
        return False

    def promote(self, operation: Operation) -> None:
        """Take an operation, if it is there, out of those that may come later."""
        if operation in self._queues[-1]:
            self._queues[-1].remove(operation)
            self._queues[_rank(operation)].append(operation)

    def hand_out(self, choose: Callable[[Operation], PoolSession | None]) -> None:
        """Give operations to the sessions that are chosen for them, as long as there are any."""
        questions, small, others, later = self._queues
        while True:
            in_turn = (small, others) if self._ahead < SMALL_AHEAD else (others, small)
            for queue in (questions, *in_turn, later):
                if queue and (session := choose(queue[0])) is not None:
                    break
            else:
                return
            if queue is small:
                self._ahead += 1
            elif queue is others:
                self._ahead = 0
            operation = queue.popleft()
            self.load_bytes -= operation.load_bytes
            session.submit(operation)

    def clear(self) -> list[Operation]:
        """Empty the queues; return what was in them."""
        waiting = [operation for queue in self._queues for operation in queue]
        for queue in self._queues:
            queue.clear()
        self.load_bytes = 0
        return waiting


def _rank(operation: Operation) -> int:
    if not operation.load_bytes:
        return 0
    return 1 if operation.is_small else 2
