"""The relay itself; see `tests.relay`. Runs in a process of its own, from this file alone."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

ADDRESS = "127.0.0.1"
CHUNK_BYTES = 256 * 1024
QUEUE_BYTES = 64 * 2**20  # held for each direction of a connection, at the most
_IOV = 64
_RST = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() send a reset
USAGE = "python -m tests.relay LISTEN_PORT TARGET_PORT ONE_WAY_MS [MIB_PER_S]"


class Flow:
    """One direction of one connection: bytes on their way, with the times they are due."""

    def __init__(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        self.name = name
        self.source = source
        self.sink = sink
        self.chunks: deque[tuple[float, memoryview]] = deque()  # an empty chunk is the end
        self.queued_bytes = 0
        self.ended = False  # the source has sent its last byte
        self.done = False  # ... and the sink has got it
        self.blocked = False  # the sink takes no more for now
        self.twin: Flow = self


class RelayLoop:
    """The relay itself: one thread, one selector, no busy waiting."""

    def __init__(self, listen_port: int, target_port: int) -> None:
        self.target_port = target_port
        self.delay_s = 0.0
        self.rate = 0.0
        self.stalled = False
        self.fault: dict[str, Any] | None = None
        self.faults = 0
        self.total = 0
        self.counts = {"up": 0, "down": 0}
        self.free_at = {"up": 0.0, "down": 0.0}  # when the link has sent all it was given
        self.flows: dict[int, list[Flow]] = {}  # by connection
        self.buffer = memoryview(bytearray(CHUNK_BYTES))
        # select(2) keeps microseconds where epoll(7) rounds up to milliseconds.
        self.selector = selectors.SelectSelector()
        self.listener: socket.socket | None = None
        self.port = listen_port
        self.listen()

    def listen(self) -> None:
        if self.listener is None:
            self.listener = socket.socket()
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind((ADDRESS, self.port))
            self.listener.listen(128)
            self.port = self.listener.getsockname()[1]
            self.selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def refuse(self) -> None:
        if self.listener is not None:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = None

    def run(self, control: bool) -> None:
        if control:
            self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        while True:
            for key, mask in self.selector.select(self.next_due()):
                if key.data is None:
                    if not self.obey():
                        return
                elif key.data == self.accept:
                    self.accept()
                else:
                    self.serve(key.data, mask)
            self.deliver_due()

    def next_due(self) -> float | None:
        if self.stalled:
            return None
        due = [
            flow.chunks[0][0]
            for pair in self.flows.values()
            for flow in pair
            if flow.chunks and not flow.blocked
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def accept(self) -> None:
        assert self.listener is not None
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection((ADDRESS, self.target_port), timeout=5)
        except OSError:
            abort(client)
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up, down = Flow("up", client, server), Flow("down", server, client)
        up.twin, down.twin = down, up
        self.total += 1
        self.flows[self.total] = [up, down]
        self.watch(up)
        self.watch(down)

    def serve(self, connection_end: tuple[Flow, Flow], mask: int) -> None:
        """Serve one socket: it is the source of one flow and the sink of the other."""
        reading, writing = connection_end
        try:
            if mask & selectors.EVENT_WRITE:
                writing.blocked = False
                self.deliver(writing)
            if mask & selectors.EVENT_READ and reading.source.fileno() >= 0:
                self.take(reading)
        except OSError:
            self.close(reading, reset=True)

    def take(self, flow: Flow) -> None:
        size = CHUNK_BYTES
        if self.rate:
            size = min(size, max(4096, int(self.rate / 100)))
        try:
            count = flow.source.recv_into(self.buffer, size)
        except BlockingIOError:
            return
        now = time.monotonic()
        due = now + self.delay_s
        if self.rate:
            self.free_at[flow.name] = max(now, self.free_at[flow.name]) + count / self.rate
            due = self.free_at[flow.name] + self.delay_s
        if count == 0:
            flow.ended = True
        count = self.struck(flow, count)
        if count < 0:
            return
        data = self.buffer[:count]
        if due <= now and count and not (flow.chunks or flow.blocked or self.stalled):
            data = data[self.send(flow, [data]) :]
        if data or flow.ended:
            flow.chunks.append((due, memoryview(bytes(data))))
            flow.queued_bytes += len(data)
        self.watch(flow)

    def struck(self, flow: Flow, count: int) -> int:
        """Count bytes and let a fault strike: return how many go on, -1 when none is left."""
        fault = self.fault
        self.counts[flow.name] += count
        if fault is None or fault["direction"] != flow.name:
            return count
        fault["left"] -= count
        if fault["left"] > 0:
            return count
        self.faults += 1
        fault["times"] -= 1
        allowed = count + fault["left"]
        fault["left"] = fault["after"]
        if fault["times"] == 0:
            self.fault = None
        if fault["kind"] == "stall":
            self.stall()
            return count
        if not flow.chunks and not flow.blocked:
            with contextlib.suppress(OSError):
                flow.sink.send(self.buffer[: max(0, allowed)])
        self.close(flow, reset=fault["kind"] == "reset")
        return -1

    def deliver_due(self) -> None:
        if self.stalled:
            return
        for pair in list(self.flows.values()):
            for flow in pair:
                if flow.chunks and not flow.blocked and not flow.done:
                    try:
                        self.deliver(flow)
                    except OSError:
                        self.close(flow, reset=True)
                        break

    def deliver(self, flow: Flow) -> None:
        now = time.monotonic()
        while flow.chunks and not flow.blocked and flow.chunks[0][0] <= now:
            batch = []
            for due, chunk in flow.chunks:
                if due > now or not chunk or len(batch) == _IOV:
                    break
                batch.append(chunk)
            if not batch:
                flow.chunks.popleft()
                self.finish(flow)
                return
            sent = self.send(flow, batch)
            flow.queued_bytes -= sent
            while sent:
                due, chunk = flow.chunks.popleft()
                if sent < len(chunk):
                    flow.chunks.appendleft((due, chunk[sent:]))
                sent -= min(sent, len(chunk))
        self.watch(flow)

    def send(self, flow: Flow, batch: list[memoryview]) -> int:
        try:
            sent = flow.sink.sendmsg(batch)
        except BlockingIOError:
            sent = 0
        if sent < sum(map(len, batch)):
            flow.blocked = True
            self.watch_socket(flow.sink, flow.twin, flow)
        return sent

    def finish(self, flow: Flow) -> None:
        flow.done = True
        if flow.twin.done:
            self.close(flow, reset=False)
        else:
            flow.sink.shutdown(socket.SHUT_WR)
            self.watch(flow)

    def watch(self, flow: Flow) -> None:
        if flow.source.fileno() >= 0:
            self.watch_socket(flow.source, flow, flow.twin)
        if flow.sink.fileno() >= 0:
            self.watch_socket(flow.sink, flow.twin, flow)

    def watch_socket(self, end: socket.socket, reading: Flow, writing: Flow) -> None:
        """Ask the selector for what this socket is wanted for, and for nothing else."""
        wanted = 0
        if not self.stalled:
            if not reading.ended and reading.queued_bytes < self.limit_bytes():
                wanted |= selectors.EVENT_READ
            if writing.blocked:
                wanted |= selectors.EVENT_WRITE
        known = self.selector.get_map().get(end)
        if known is None and wanted:
            self.selector.register(end, wanted, (reading, writing))
        elif known is not None and not wanted:
            self.selector.unregister(end)
        elif known is not None and known.events != wanted:
            self.selector.modify(end, wanted, (reading, writing))

    def limit_bytes(self) -> float:
        if self.rate:
            return min(QUEUE_BYTES, max(CHUNK_BYTES, self.rate * (self.delay_s + 0.05)))
        return QUEUE_BYTES

    def close(self, flow: Flow, *, reset: bool) -> None:
        for end in (flow.source, flow.sink):
            if end.fileno() >= 0:
                if end in self.selector.get_map():
                    self.selector.unregister(end)
                abort(end) if reset else end.close()
        self.flows = {n: pair for n, pair in self.flows.items() if flow not in pair}

    def stall(self) -> None:
        self.stalled = True
        self.watch_all()

    def watch_all(self) -> None:
        for up, _down in self.flows.values():
            self.watch(up)

    def obey(self) -> bool:
        """Read one command and answer it; False when the controlling process has ended."""
        line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]
        if not line:
            return False
        message = json.loads(line)
        command = message.pop("command")
        if command == "set":
            if message["one_way_ms"] is not None:
                self.delay_s = message["one_way_ms"] / 1000
            if message["rate"] is not None:
                self.rate = message["rate"]
        elif command == "fault":
            if message["kind"] == "stall" and not message["after"]:
                self.faults += 1
                self.stall()
            else:
                self.fault = {**message, "left": message["after"]}
        elif command == "resume":
            self.stalled, self.fault = False, None
            self.watch_all()
        elif command == "reset":
            self.faults += 1
            for up, _down in list(self.flows.values()):
                self.close(up, reset=True)
        elif command == "refuse":
            self.refuse()
        elif command == "accept":
            self.listen()
        self.tell(open=len(self.flows), total=self.total, faults=self.faults, **self.counts)
        return True

    def tell(self, **answer: Any) -> None:
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def abort(end: socket.socket) -> None:
    """Close with a TCP reset."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    end.close()


def main(arguments: list[str]) -> int:
    control = arguments[-1:] == ["--control"]
    numbers = arguments[:-1] if control else arguments
    if len(numbers) not in (3, 4):
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    loop = RelayLoop(int(numbers[0]), int(numbers[1]))
    loop.delay_s = float(numbers[2]) / 1000
    loop.rate = float(numbers[3]) * 2**20 if len(numbers) == 4 else 0.0
    loop.tell(port=loop.port)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run(control)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
