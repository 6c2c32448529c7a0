"""Sessions of one server: bounded, shared, re-opened, more of them only while they help.

The pool keeps a queue of operations and hands each to a session that has room. It opens the
first session when there is work, others while the decision `more_sessions` says so, and fewer
when the server refuses. An operation that fails because its session broke is tried again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .config import ConnectionSettings
from .errors import (
    AuthenticationFailed,
    ConnectionLost,
    RemoteFileNotFound,
    TransferError,
    TransferTimeout,
    cancelled,
)
from .growth import SAMPLE_S, Growth, windows_worth_having
from .loop import Loop, Timer
from .nodestate import SessionSlots
from .queues import Queues
from .retry import may_be_one_too_many, pause_s, worth_reopening, worth_retrying
from .transports.base import Done, MakeSession, Operation, PoolSession

LEAST_LOGIN_S = 1.0  # after a silence that has left less of the limit, a login has a whole one
IDLE_S = 60.0  # an idle session is closed after this
REMEMBER_LOGIN_S = 300.0  # a refused login is not tried again for so long
TAKEN_S = 600.0  # patience with other processes that have all sessions of this node


class Pool:
    """The sessions of one server. Belongs to the loop's thread.

    Parameters
    ----------
    loop : Loop
    url : str
        The server.
    settings : ConnectionSettings
        Already those of the server.
    make_session : callable
        ``make_session(on_open, on_lost, leader)`` begins a login, or a session on the
        connection of the leader.
    on_first_open : callable
        Called once, when the server has let us in.

    Attributes
    ----------
    growth : Growth
        What is to come, as the jobs tell it.
    takes_parts : bool or None
        Whether the server takes a file in parts, as an upload has found; None while none has.
    """

    def __init__(
        self,
        loop: Loop,
        url: str,
        settings: ConnectionSettings,
        make_session: MakeSession,
        on_first_open: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._url = url
        self._settings = settings
        self._make_session = make_session
        self._on_first_open = on_first_open
        self._slots = SessionSlots(url, settings.connections)
        self._sessions: dict[PoolSession, _Held] = {}
        self._can_share = True
        self._one_login = False  # another one would take another one-time code
        self._queues = Queues()
        self._waiting: set[Operation] = set()  # for their next attempt
        self._limit = settings.connections
        self._limit_until = 0.0
        self._ever_opened = False
        self._failures = 0
        self._trouble_since: float | None = None
        self._silent_since: float | None = None  # a session has ended of it, and no other is open
        self._reopen: Timer | None = None
        self._refused_login: tuple[float, TransferError] | None = None
        self._heard = 0.0
        self._closed = False
        self._dispatch_asked = False
        self.growth = Growth()
        self.takes_parts: bool | None = None
        self._sampler: Timer | None = None
        self._keeper: Timer | None = None

    # --- the face --------------------------------------------------------------------------

    def submit(self, operation: Operation, *, background: bool = False) -> None:
        """Queue an operation; its ``done`` is called exactly once, later."""
        operation.born = time.monotonic()
        final = operation.done
        operation.done = partial(self._outcome, operation, final)
        operation.on_bytes = partial(self._count, operation.on_bytes)
        if operation.load_bytes:
            self.growth.begin_move()
        self._queues.append(operation, background=background)
        self._dispatch()

    def cancel(self, operation: Operation) -> None:
        """Give an operation up; it ends soon, with an error."""
        operation.cancelled = True
        if self._queues.remove(operation):
            self._loop.call_soon(partial(operation.done, None, cancelled()))

    def promote(self, operation: Operation) -> None:
        """Serve an operation before those in the background, if it still waits among them."""
        self._queues.promote(operation)

    def close(self) -> None:
        """End all sessions; what is queued fails."""
        self._closed = True
        for timer in (self._reopen, self._sampler, self._keeper):
            if timer:
                timer.cancel()
        for session in list(self._sessions):
            session.close()
            self._forget(session)
        self._fail_queued(ConnectionLost("the engine was closed", self._url, retryable=False))

    # --- operations ------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._dispatch_asked = False
        if self._closed:
            return
        self._queues.hand_out(self._choose)
        if self._sessions and self._can_share:
            self._open_windows()
        if self._queues:
            if not self._sessions and self._reopen is None:
                self._open_first()
            if self._sampler is None:
                self._start_sample()

    def _choose(self, operation: Operation) -> PoolSession | None:
        free = (
            session
            for session, held in self._sessions.items()
            if not held.draining and session.has_room(operation)
        )
        return min(free, key=lambda session: (session.load_bytes, session.load), default=None)

    def _outcome(
        self, operation: Operation, final: Done, result: Any, error: TransferError | None
    ) -> None:
        if error is not None and self._worth_retrying(operation, error):
            self._note_attempt(operation)
            if operation.moved:
                operation.count(-operation.moved)
            if operation.renew:
                operation.args = operation.renew()
            self._waiting.add(operation)
            again = partial(self._again, operation)
            self._loop.call_later(pause_s(operation.attempts), again)
            return
        if operation.load_bytes:
            self.growth.end_move()
        if error is None:
            self.growth.done_files += operation.weight if operation.load_bytes else 0
        elif (
            operation.attempts
            and operation.name in ("remove", "rmdir")
            and isinstance(error, RemoteFileNotFound)
        ):
            error = None  # the attempt before did it, and its answer was lost
        if not self._dispatch_asked and self._queues:
            self._dispatch_asked = True
            self._loop.call_soon(self._dispatch)
        final(result, error)

    def _worth_retrying(self, operation: Operation, error: TransferError) -> bool:
        if self._closed or operation.cancelled:
            return False
        return worth_retrying(
            operation,
            error,
            now=time.monotonic(),
            heard=self._last_heard(),
            timeout_s=self._settings.timeout_s,
        )

    def _note_attempt(self, operation: Operation) -> None:
        if not operation.attempts or operation.moved > operation.most:
            operation.attempts = 0
            operation.troubled = time.monotonic()
            operation.most = operation.moved
        operation.attempts += 1

    def _again(self, operation: Operation) -> None:
        if operation not in self._waiting:
            return
        self._waiting.discard(operation)
        if operation.cancelled:
            operation.done(None, cancelled())
            return
        self._queues.put_back(operation)
        self._dispatch()

    def _last_heard(self) -> float:
        return max(
            (session.last_heard for session in self._sessions if session.opened),
            default=self._heard,
        )

    def _fail_queued(self, error: TransferError) -> None:
        self._stop_waiting()
        failed = [*self._queues.clear(), *self._waiting]
        self._waiting.clear()
        final = type(error)(error.message, error.url, retryable=False)
        for operation in failed:
            operation.done(None, final)

    def _count(self, tell: Callable[[int], None] | None, count: int) -> None:
        self.growth.done_bytes += count
        if tell:
            tell(count)

    # --- sessions --------------------------------------------------------------------------

    def _open_first(self) -> None:
        now = time.monotonic()
        if self._refused_login and now < self._refused_login[0]:
            error = self._refused_login[1]
            self._loop.call_soon(partial(self._fail_queued, error))
            return
        if self._trouble_since is None:
            self._trouble_since = now
        if not self._open():
            self._await_slot()

    def _await_slot(self) -> None:
        """Every slot of this node is taken: another process is at work. Show that we wait."""
        self._slots.wait()
        waited_s = time.monotonic() - (self._trouble_since or time.monotonic())
        if waited_s > max(TAKEN_S, 10 * self._settings.timeout_s):
            taken = TransferTimeout(
                f"all {self._slots.limit} sessions of this node stayed taken by other processes;"
                " end them, or raise PYREMOTEDATA_CONNECTIONS if the server takes more",
                self._url,
            )
            self._loop.call_soon(partial(self._fail_queued, taken))
        else:
            self._schedule_open(random.uniform(0.05, 0.25))  # noqa: S311

    def _open_windows(self) -> None:
        """Open sessions on the connection that is there, if the work is worth it."""
        if len(self._sessions) >= self._limit or self._is_draining:
            return
        leader = self._find_leader()
        if leader is None or not leader.rtt_s:
            return
        handed_out = sum(session.load_bytes for session in self._sessions)
        known_bytes = self.growth.known_bytes(self._queues.load_bytes + handed_out)
        past_bytes = self.growth.past_bytes(leader.rtt_s, len(self._sessions))
        wanted = windows_worth_having(known_bytes + past_bytes, leader.rtt_s)
        for _ in range(min(wanted, self._limit) - len(self._sessions)):
            if not leader.can_share or not self._open(leader):
                self._can_share = leader.can_share
                return

    def _find_leader(self) -> PoolSession | None:
        """Return an open session that has a connection of its own."""
        leaders = (s for s, held in self._sessions.items() if s.opened and held.leader is None)
        return next(leaders, None)

    @property
    def _is_draining(self) -> bool:
        return any(held.draining for held in self._sessions.values())

    def _schedule_open(self, delay_s: float) -> None:
        def open_again() -> None:
            self._reopen = None
            if not (self._queues or self._waiting):
                self._stop_waiting()
            self._dispatch()

        if self._reopen is None:  # else it is a pause that another failure has asked for
            self._reopen = self._loop.call_later(delay_s, open_again)

    def _stop_waiting(self) -> None:
        """Let other processes keep their sessions; who asks next has the same patience again."""
        self._slots.stop_waiting()
        self._trouble_since = self._silent_since = None

    def _open(self, leader: PoolSession | None = None) -> bool:
        slot = None
        born = time.monotonic()

        def on_open() -> None:
            self._opened(session)

        def on_lost(error: TransferError) -> None:
            self._lost(session, error)

        try:
            slot = self._slots.acquire()
            if slot is None:
                return False
            session = self._make_session(on_open, on_lost, leader)
        except (TransferError, OSError) as error:
            if slot is not None:
                os.close(slot)
            if self._sessions:
                return False  # it works with those that are there
            if isinstance(error, OSError) and not isinstance(error, TransferError):
                error = ConnectionLost(f"cannot start a session: {error}", self._url)
            self._loop.call_soon(partial(self._fail_queued, error))
            return True
        self._sessions[session] = _Held(slot, born, leader)
        if self._silent_since is not None:
            # The login has what the silence has left of the limit.
            left_s = self._silent_since + self._settings.timeout_s - born
            self._loop.call_later(max(0.0, left_s), partial(self._give_up, session))
        return True

    def _give_up(self, session: PoolSession) -> None:
        if session in self._sessions and not session.opened:
            session.close()
            self._forget(session)
            limit_s = self._settings.timeout_s
            silent = TransferTimeout(f"the server has been silent for {limit_s:g} s", self._url)
            self._fail_queued(silent)

    def _opened(self, session: PoolSession) -> None:
        held = self._sessions[session]
        if held.leader is None:
            self.growth.connect_s = time.monotonic() - held.born
            self._one_login = session.took_code
        if not self._ever_opened:
            self._loop.call_soon(self._on_first_open)
        self._slots.opened(held.slot)
        self._ever_opened = True
        self._failures = 0
        self._trouble_since = self._silent_since = None
        self._heard = time.monotonic()
        if self._keeper is None:
            self._keeper = self._loop.call_later(0.5, self._keep)
        self._start_sample()
        self._dispatch()

    def _lost(self, session: PoolSession, error: TransferError) -> None:
        had_opened = session.opened
        if had_opened:
            self._heard = max(self._heard, session.last_heard)
        elif not isinstance(error, TransferTimeout):
            self._silent_since = None  # somebody has answered
        crowded = not had_opened and self._is_crowded(session, error)
        self._forget(session)
        if self._closed:
            return
        if had_opened:
            left_s = self._heard + self._settings.timeout_s - time.monotonic()
            unheard = isinstance(error, TransferTimeout) and left_s > LEAST_LOGIN_S
            if unheard and not self._sessions and self._waiting:
                self._silent_since = self._heard  # what has waited for the limit has failed
            self._dispatch()
            return
        if any(other.opened for other in self._sessions):
            # It works with fewer.
            self._can_share = False
            self._limit = max(1, len(self._sessions))
            self._limit_until = time.monotonic() + 30.0
            self.growth.forget_last()
            return
        if not crowded:
            self._failures += 1
            if isinstance(error, AuthenticationFailed):
                self._refused_login = (time.monotonic() + REMEMBER_LOGIN_S, error)
        if self._sessions:
            return  # another login is still under way
        if crowded:
            self._await_slot()
        elif self._worth_reopening(error):
            # A short time limit must not be spent on one pause.
            longest = min(5.0, self._settings.timeout_s / 4)
            self._schedule_open(pause_s(self._failures, longest))
        else:
            self._fail_queued(error)

    def _is_crowded(self, session: PoolSession, error: TransferError) -> bool:
        """Whether a login failed while others of this node hold all that the server takes."""
        held = self._sessions[session]
        return held.leader is None and may_be_one_too_many(error) and self._slots.refused()

    def _worth_reopening(self, error: TransferError) -> bool:
        now = time.monotonic()
        return worth_reopening(
            error,
            ever_opened=self._ever_opened,
            failures=self._failures,
            troubled_s=now - (self._trouble_since or now),
            timeout_s=self._settings.timeout_s,
        )

    def _forget(self, session: PoolSession) -> None:
        held = self._sessions.pop(session, None)
        if held is not None:
            os.close(held.slot)

    def _retire(self, session: PoolSession) -> None:
        session.close()
        self._heard = max(self._heard, session.last_heard)
        self._forget(session)

    def _keep(self) -> None:
        """Close what has been idle for long, and give way to other processes of this node."""
        self._keeper = None
        now = time.monotonic()
        others_wait = bool(self._sessions) and self._slots.others_wait()
        for session, held in list(self._sessions.items()):
            if not session.opened or session.load or not self._may_go(session):
                continue
            quiet_s = now - max(session.last_heard, held.born)
            unused = not self._queues and (others_wait or quiet_s > IDLE_S)
            if unused or held.draining:
                self._retire(session)
        if others_wait and self._sessions and not self._is_draining:
            free = [held for session, held in self._sessions.items() if self._may_go(session)]
            oldest = min(free, key=lambda held: held.born, default=None)
            if oldest and (len(self._sessions) > 1 or now - oldest.born > 2.0):
                oldest.draining = True
        if self._sessions:
            self._keeper = self._loop.call_later(0.5, self._keep)
        elif self._queues:
            self._schedule_open(random.uniform(0.05, 0.25))  # noqa: S311

    def _may_go(self, session: PoolSession) -> bool:
        """Whether no other one needs its connection, and no person to open it again."""
        if any(held.leader is session for held in self._sessions.values()):
            return False
        return not self._one_login or self._sessions[session].leader is not None

    # --- growth ----------------------------------------------------------------------------

    def _start_sample(self) -> None:
        if self._sampler is not None:
            self._sampler.cancel()
        self.growth.begin_sample()
        self._sampler = self._loop.call_later(SAMPLE_S, self._sampled)

    def _sampled(self) -> None:
        self._sampler = None
        if not self._queues:
            return  # nobody waits; a new sample begins with the next queue
        self.growth.end_sample()
        self._start_sample()
        opened = [s for s, held in self._sessions.items() if s.opened and not held.draining]
        if not opened or len(opened) < len(self._sessions):
            return  # logins are under way
        if self.growth.compare(len(opened)):
            return  # one more sample with all of them before the next decision
        if time.monotonic() > self._limit_until:
            self._limit = self._settings.connections
        room = self._limit - len(self._sessions)
        if room <= 0:
            return
        wanted = self.growth.wanted(opened, self._queues)
        leader = self._find_leader() if self._one_login else None
        if self._one_login and (leader is None or not leader.can_share or not self._can_share):
            return
        for _ in range(min(wanted, room)):
            if not self._open(leader):
                break
            self.growth.remember(len(opened))


@dataclass(slots=True, eq=False)
class _Held:
    """What the pool knows of a session."""

    slot: int  # the descriptor of its lock
    born: float
    leader: PoolSession | None  # whose connection it uses
    draining: bool = False  # takes nothing more, and goes when it is idle
