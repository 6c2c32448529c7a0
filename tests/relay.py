"""A TCP relay on loopback that makes a network: latency, a rate, and faults on command.

``python -m tests.relay LISTEN_PORT TARGET_PORT ONE_WAY_MS [MIB_PER_S]`` runs one by hand;
`Relay` runs one in a child process, which shares no interpreter lock with the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Self

from .child import Child

_LOOP = str(Path(__file__).with_name("relay_loop.py"))


class Relay:
    """A relay in a child process: ``with Relay(server.port, one_way_ms=10) as relay: ...``.

    Parameters
    ----------
    target_port : int
        Loopback port of the server.
    one_way_ms : float
        Delay of each direction; the round trip is twice that.
    rate : float or None
        Bytes per second of the whole link, for each direction.

    Attributes
    ----------
    port : int
        Where the relay listens.

    Notes
    -----
    "up" is client to server, "down" is server to client. Not thread-safe. The child ends with
    `stop`, and with this process however that ends.
    """

    def __init__(
        self, target_port: int, *, one_way_ms: float = 0.0, rate: float | None = None
    ) -> None:
        self.port = 0
        self._target_port = target_port
        self._settings = {"one_way_ms": one_way_ms, "rate": rate}
        self._child: Child | None = None

    def start(self) -> Self:
        """Start the child process."""
        command = [sys.executable, "-I", "-S", _LOOP, "0", str(self._target_port), "0", "--control"]
        self._child = Child(*command)
        self.port = self._child.answer()["port"]
        self.set(**self._settings)
        return self

    def stop(self) -> None:
        """End the child process. May be called twice."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, url: str) -> str:
        """Return a URL of the server as a URL through the relay."""
        head, colon, tail = url.partition(f":{self._target_port}")
        assert colon, f"{url} does not name port {self._target_port}"
        return f"{head}:{self.port}{tail}"

    def set(self, *, one_way_ms: float | None = None, rate: float | None = None) -> None:
        """Change the delay and the rate for what arrives from now on; ``rate=0`` lifts it."""
        self._ask(command="set", one_way_ms=one_way_ms, rate=rate)

    def stall(self, *, after_bytes: int = 0, direction: str = "down") -> None:
        """Let nothing through any more, in neither direction, and close nothing: a black hole."""
        self._ask(command="fault", kind="stall", after=after_bytes, direction=direction, times=1)

    def resume(self) -> None:
        """End a stall and forget the faults that have not struck."""
        self._ask(command="resume")

    def reset(self) -> None:
        """Break every connection with a TCP reset, now."""
        self._ask(command="reset")

    def drop_after(
        self, n_bytes: int, *, direction: str = "down", times: int = 1, kind: str = "reset"
    ) -> None:
        """Break the connection that carries the ``n_bytes``-th byte from now on.

        Parameters
        ----------
        n_bytes : int
            Counted over all connections; at the most this many are delivered.
        direction : {"down", "up"}
        times : int
            How often: after each break the count begins anew.
        kind : {"reset", "close"}
            A TCP reset, or an orderly end in the middle.
        """
        self._ask(command="fault", kind=kind, after=n_bytes, direction=direction, times=times)

    def refuse(self) -> None:
        """Refuse new connections; those that are open go on."""
        self._ask(command="refuse")

    def accept(self) -> None:
        """Take new connections again, on the same port."""
        self._ask(command="accept")

    def status(self) -> dict[str, int]:
        """Return ``open`` and ``total`` connections, ``up`` and ``down`` bytes, ``faults``."""
        return self._ask(command="status")

    def _ask(self, **message: Any) -> dict[str, Any]:
        assert self._child is not None, "the relay is not running"
        return self._child.ask(message)


if __name__ == "__main__":
    from .relay_loop import main

    sys.exit(main(sys.argv[1:]))
