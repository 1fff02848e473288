"""One instance while a worker owns it: replay its history, then go on live, one turn after the other.

The code runs on a loop of its own (``runloop.py``) until nothing more can run; then the next observed result is
delivered, in ``pos`` order, and so on: in replay from the history, live from committed turns. An activity's result is
delivered after its commit. An event or a fired timer is delivered before (the choice is a function of the database, so
a crash repeats it), but no activity starts until the turn that records it is committed.

Everything here runs in callbacks of the real loop, never inside a task: another task's step must not be nested in one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import from_json, to_json

from edda.engine.attempt import run_activity
from edda.engine.commands import COMMAND_OF_WAIT, ActivityCall, Command, EventWait, TimerWait
from edda.engine.observed import decode_event, encode_event
from edda.engine.runloop import RunLoop
from edda.errors import InstanceExistsError, NonDeterminismError, OwnershipLostError, StorageDataError
from edda.history import records as kinds
from edda.history.codec import decode, decode_exception, encode, encode_exception
from edda.storage.rows import (
    Applied,
    LoadedInstance,
    NewWait,
    OutboxMessage,
    Record,
    Release,
    State,
    Turn,
    TurnResult,
    WaitKind,
    WaitRow,
)

if TYPE_CHECKING:
    from edda.engine.journal import Journal
    from edda.retry import RetryPolicy
    from edda.storage.contract import Storage
    from edda.storage.rows import NewInstance, Shape

log = logging.getLogger("edda.engine")

#: Keyed waits see events accepted this long before their chain's start (clocks of producers and us overlap).
KEYED_GRACE_US = 60_000_000

#: "From the first reach of the wait": later than any event that is accepted already.
_REGISTRATION = 1 << 62

_TIMER_PAYLOAD = b"null"


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """What the engine knows of a workflow: its name, and how its code begins for one run."""

    name: str
    entry: Callable[[Run], Coroutine[Any, Any, Any]]
    version: str | None = None


class Host(Protocol):
    """The worker, as a run sees it."""

    loop: asyncio.AbstractEventLoop
    journal: Journal
    store: Storage
    owner: str
    default_policy: RetryPolicy
    strict_arguments: bool
    retry_park_after: float
    stopping: bool

    def now_us(self) -> int: ...
    def saw_now(self, now_us: int) -> None: ...
    def known_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape | None: ...
    async def ensure_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape: ...
    def load_soon(self, run: Run) -> None: ...
    def timer(self, deadline_us: int) -> None: ...
    def committed(self, turn: Turn) -> None: ...
    def released(self, run: Run, how: Released) -> None: ...
    def destinations(self, event_type: str) -> list[str]: ...
    def run_in_thread(self, func: Callable[[], Any]) -> asyncio.Future[Any]: ...


@dataclass(frozen=True, slots=True)
class Released:
    """Why a run left the worker's memory. ``error`` is the workflow's exception or the reason of a refused start."""

    state: State | None  # None: lost to another owner
    error: BaseException | None = None
    user_visible: bool = True


class _Refused(Exception):  # noqa: N818, a control signal
    """Raised into code that goes on calling after its run was dropped."""


class Run:
    """One owned instance. Created by the worker from a claim (with history) or from a start (without)."""

    def __init__(self, host: Host, definition: WorkflowDefinition, instance_id: str, fence: int) -> None:
        self.host = host
        self.definition = definition
        self.id = instance_id
        self.fence = fence
        self.signals = 0
        self.input = b"{}"
        self.chain = instance_id
        self.chain_started_at = 0
        self.created_at = 0
        self.start_event = 0
        self.recoveries = 0
        self.closed = False
        self.replaying = False

        self._root: asyncio.Task[Any] | None = None
        self._runloop = RunLoop(host.loop, self._advance)  # type: ignore[abstract]
        self._seq = 0
        self._pos = 0
        self._next = 0  # pos of the next live delivery
        self._past: deque[Record] = deque()
        self._by_seq: dict[int, Record] = {}
        self._rows: dict[int, WaitRow] = {}
        self._due: list[WaitRow] = []
        self._commands: dict[int, Command] = {}
        self._fresh: list[Command] = []
        self._held: list[Command] = []
        self._active: dict[int, asyncio.Task[None]] = {}
        self._preparing = 0
        self._cursors: dict[bytes, int] = {}
        self._undelivered: dict[int, tuple[Command, Any, BaseException | None]] = {}
        self._ready: dict[int, tuple[Command, Any, BaseException | None] | None] = {}
        self._turn: Turn | None = None
        self._speculative = False  # the turn being built records something that was delivered already
        self._in_flight: Turn | None = None
        self._in_flight_speculative = False
        self._loading = False
        self._born: asyncio.Future[None] | None = None
        self._forced: tuple[State, BaseException] | None = None  # how the engine itself ends it
        self._outcome: BaseException | None = None
        self._after_commit: list[tuple[Turn, Callable[[], None]]] = []
        self._advancing = False

    # ------------------------------------------------------------------ beginning

    def begin_new(self, start: NewInstance) -> None:
        """A start: the instance's own row goes first; the code begins when it is committed."""
        self.input = start.input
        self.chain = start.chain or start.id
        self._open_turn().start = start
        self.host.journal.submit(self)

    def begin_claimed(self, loaded: LoadedInstance) -> None:
        """A claim: replay the history, then go on."""
        self.signals = loaded.signals
        self._past.extend(loaded.history)
        self._by_seq = {record.seq: record for record in loaded.history}
        if loaded.history:
            self._pos = self._next = loaded.history[-1].pos + 1
        self._take_rows(loaded)
        self.replaying = bool(self._past)
        self._begin_code()

    def _begin_code(self) -> None:
        self._root = self._runloop.create_task(self.definition.entry(self), name=f"edda:{self.id}")
        self._advance()

    # ------------------------------------------------------------------ commands (called by the workflow's code)

    def activity(self, call: ActivityCall, args_hash: bytes) -> asyncio.Future[Any]:
        """Ask for an activity's result."""
        command = self._command("activity", call.name, args_hash)
        command.call = call
        return command.future

    def wait_event(self, wait: EventWait, name: str) -> asyncio.Future[Any]:
        """Ask for the next event that fits; the future gives a CloudEvent, or None for a timeout."""
        command = self._command("wait_event", name, None)
        command.wait = wait
        return command.future

    def sleep(self, wait: TimerWait, name: str) -> asyncio.Future[Any]:
        """Ask for a timer."""
        command = self._command("sleep", name, None)
        command.wait = wait
        return command.future

    def publish(self, messages: list[OutboxMessage]) -> asyncio.Future[Any]:
        """Put an event (a copy per destination) into the outbox; the future gives its id when it is committed."""
        first = messages[0]
        command = self._command("send_event", first.type, None)
        if command.seq not in self._by_seq:
            self.observe(
                command, kinds.PUBLISH, to_json(first.event_id), None, first.event_id, outbox=messages
            )
        return command.future

    def _command(self, kind: str, name: str, args_hash: bytes | None) -> Command:
        if self.closed:
            raise _Refused
        self._seq += 1
        command = Command(self._seq, kind, name, args_hash, self._runloop.create_future())
        record = self._by_seq.get(command.seq)
        if record is not None:
            self._check(command, kinds.COMMAND_OF[record.kind], record.name, record.args_hash)
        else:
            row = self._rows.get(command.seq)
            if row is not None:
                self._check(command, COMMAND_OF_WAIT[row.kind], row.name, None)
                command.registered = True
            if kind != "send_event":
                self._fresh.append(command)
        self._commands[command.seq] = command
        return command

    def _check(self, command: Command, kind: str, name: str, args_hash: bytes | None) -> None:
        """Invariant 11: command kind and name strictly; the argument hash strictly in tests, as a warning elsewhere."""
        if (kind, name) != (command.kind, command.name):
            expected, got = f"{kind} {name!r}", f"{command.kind} {command.name!r}"
        elif args_hash is not None and command.args_hash is not None and args_hash != command.args_hash:
            if not self.host.strict_arguments:
                log.warning(
                    "arguments_changed_on_replay",
                    extra={
                        "instance_id": self.id,
                        "workflow": self.definition.name,
                        "seq": command.seq,
                        "call": name,
                    },
                )
                return
            expected = got = f"{kind} {name!r}"
            expected, got = f"{expected} with the recorded arguments", f"{got} with other arguments"
        else:
            return
        raise self._mismatched(command.seq, expected, got)

    def _mismatched(self, seq: int, expected: str, got: str) -> NonDeterminismError:
        error = NonDeterminismError(
            f"instance {self.id!r} of workflow {self.definition.name!r}: command {seq} is {expected} in the history, "
            f"but the code does {got} at {_user_line()}. Nothing was written; the instance is paused. Deploy code that "
            "does again what the history says (or guard the change), then resume it."
        )
        self._forced = self._forced or (State.PAUSED, error)
        return error

    # ------------------------------------------------------------------ observing results

    def observe(
        self,
        command: Command,
        kind: str,
        payload: bytes,
        content_type: str | None,
        value: Any,
        error: BaseException | None = None,
        *,
        speculative: bool = False,
        outbox: list[OutboxMessage] | None = None,
        after_commit: Callable[[], None] | None = None,
    ) -> None:
        """Put a result into the turn. Delivered when the turn is committed, or at once if speculative."""
        turn = self._open_turn()
        record = self.next_record(command, kind, payload, content_type)
        turn.records.append(record)
        if outbox:
            turn.outbox.extend(outbox)
        if command.registered:
            turn.drop_waits.append(command.seq)
        if after_commit is not None:
            self._after_commit.append((turn, after_commit))
        if speculative:
            self._speculative = True
            self._ready[record.pos] = (command, value, error)
        else:
            self._undelivered[record.pos] = (command, value, error)
        self.host.journal.submit(self)

    def next_record(self, command: Command, kind: str, payload: bytes, content_type: str | None) -> Record:
        """A record at the next place of the observed order."""
        pos = self._pos
        self._pos += 1
        return Record(command.seq, pos, kind, command.name, payload, content_type, command.args_hash)

    def observed_elsewhere(
        self, record: Record, command: Command, value: Any, error: BaseException | None, *, committed: bool
    ) -> None:
        """A record was written by the user's own transaction (or, not committed, its place stays empty)."""
        self._ready[record.pos] = (command, value, error) if committed else None
        if committed and command.registered:
            self._open_turn().drop_waits.append(command.seq)
        self.host.loop.call_soon(self._advance)

    def backoff(
        self, command: Command, delay: float, detail: bytes, committed: Callable[[], None] | None
    ) -> None:
        """Make a failed attempt durable: a wait row of kind retry. Without ``committed`` the run may park on it."""
        command.registered = True
        turn = self._open_turn()
        turn.waits.append(
            NewWait(command.seq, WaitKind.RETRY, command.name, delay_us=int(delay * 1_000_000), detail=detail)
        )
        if committed is not None:
            self._after_commit.append((turn, committed))
        else:
            self._active.pop(command.seq, None)
        self.host.journal.submit(self)

    # ------------------------------------------------------------------ going on

    def _advance(self) -> None:
        """Deliver and drain until nothing more can run, then see what the code asked for."""
        if self.closed or self._advancing:
            return
        if self._root is None and self._forced is None:
            return  # its start is not committed yet
        self._advancing = True
        try:
            while True:
                self._runloop.drain()
                if self._forced is not None:
                    break
                if self.replaying and self._runloop.foreign:
                    return  # the code awaits something of its own; its end wakes us
                if not self._deliver_next():
                    break
        finally:
            self._advancing = False
        self._settle()

    def _deliver_next(self) -> bool:
        if self._past:
            self._deliver_past(self._past.popleft())
            return True
        self.replaying = False
        while self._next in self._ready:
            entry = self._ready.pop(self._next)
            self._next += 1
            if entry is not None:
                command, value, error = entry
                self._complete(command, value, error)
                return True
        if self._due:
            self._apply(self._due.pop(0))
            return True
        return False

    def _deliver_past(self, record: Record) -> None:
        command = self._commands.get(record.seq)
        if command is None:
            what = "ends" if self._root is not None and self._root.done() else "does not come to it"
            self._mismatched(record.seq, f"{kinds.COMMAND_OF[record.kind]} {record.name!r}", what)
            return
        if record.kind == kinds.ACTIVITY:
            adapter = command.call.adapter if command.call is not None else None
            try:
                value = decode(record.payload, record.content_type, adapter)
            except ValueError as error:
                self._complete(command, None, error)
                return
            self._complete(command, value, None)
        elif record.kind == kinds.ACTIVITY_FAILED:
            self._complete(command, None, decode_exception(record.payload))
        elif record.kind == kinds.EVENT:
            seq, event = decode_event(record.payload)
            self._received(command, seq)
            self._complete(command, event, None)
        elif record.kind == kinds.PUBLISH:
            self._complete(command, from_json(record.payload), None)
        else:
            self._complete(command, None, None)

    def _complete(self, command: Command, value: Any, error: BaseException | None) -> None:
        self._commands.pop(command.seq, None)
        self._active.pop(command.seq, None)
        future = command.future
        if future.done():
            return  # the code gave up on it
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _received(self, command: Command, seq: int) -> None:
        if isinstance(command.wait, EventWait):
            self._cursors[command.wait.hash] = max(seq, self._cursors.get(command.wait.hash, 0))

    def _apply(self, row: WaitRow) -> None:
        """A wait that is due: choose what ends it, by data alone."""
        command = self._commands.get(row.seq)
        if command is None or command.future.done():
            return
        if row.kind is WaitKind.RETRY:
            if command.seq not in self._active:
                detail = from_json(row.detail or b"{}")
                command.attempt = int(detail.get("attempt", 0)) + 1
                command.first_us = int(detail.get("first_us", 0))
                self._launch(command)
        elif row.kind is WaitKind.TIMER:
            self.observe(command, kinds.TIMER, _TIMER_PAYLOAD, None, None, speculative=True)
        elif row.kind is WaitKind.EVENT and isinstance(command.wait, EventWait):
            self._apply_event(command, command.wait, row)

    def _apply_event(self, command: Command, wait: EventWait, row: WaitRow) -> None:
        event = row.event
        if event is not None and (row.deadline_us is None or event.accepted_at <= row.deadline_us):
            if event.seq <= self._cursors.get(wait.hash, 0):
                # Another wait of the same shape received it in this very turn: look again behind it.
                self._open_turn().waits.append(self._new_wait(command, row.deadline_us))
                return
            self._received(command, event.seq)
            payload, decoded = encode_event(event)
            self.observe(command, kinds.EVENT, payload, None, decoded, speculative=True)
        elif row.deadline_us is not None and row.deadline_us <= self.host.now_us():
            self.observe(command, kinds.EVENT_TIMEOUT, _TIMER_PAYLOAD, None, None, speculative=True)

    # ------------------------------------------------------------------ at rest: what now?

    def _settle(self) -> None:
        if self._forced is not None:
            self._drop_work()
            self._turn = None  # whatever the code did since the last commit is not to be trusted
            self._open_turn()
            self.host.journal.submit(self)
            return
        self._forget_cancelled()
        fresh, self._fresh = self._fresh, []
        for command in fresh:
            if command.seq not in self._commands:
                continue
            if command.call is not None:
                if command.seq not in self._rows:  # else: a failed attempt, which its backoff's timer wakes
                    self._launch(command)
            elif not command.registered:
                self._register(command)
        if self._turn is not None or self._release() is not Release.KEEP:
            self._open_turn()
            self.host.journal.submit(self)

    def _forget_cancelled(self) -> None:
        for command in [command for command in self._commands.values() if command.future.cancelled()]:
            del self._commands[command.seq]
            task = self._active.pop(command.seq, None)
            if task is not None:
                task.cancel()
            if command.registered:
                self._open_turn().drop_waits.append(command.seq)

    def _launch(self, command: Command) -> None:
        """Start an activity's body, but never while something the code has seen is not committed."""
        if self._speculative or self._in_flight_speculative:
            self._held.append(command)
            return
        if self.host.stopping:
            return
        self._active[command.seq] = self.host.loop.create_task(run_activity(self, command))

    def _register(self, command: Command) -> None:
        wait = command.wait
        if isinstance(wait, EventWait) and self.host.known_shape(wait.pattern, wait.paths) is None:
            self._preparing += 1
            task = self.host.loop.create_task(self.host.ensure_shape(wait.pattern, wait.paths))
            task.add_done_callback(lambda done: self._prepared(command, done))
            return
        command.registered = True
        self._open_turn().waits.append(self._new_wait(command, None))

    def _prepared(self, command: Command, task: asyncio.Task[Shape]) -> None:
        self._preparing -= 1
        if self.closed:
            if not task.cancelled():
                task.exception()
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._complete(command, None, error)
        elif command.seq in self._commands:
            self._register(command)
        self._advance()

    def _new_wait(self, command: Command, deadline_us: int | None) -> NewWait:
        wait = command.wait
        if isinstance(wait, TimerWait):
            return NewWait(
                command.seq,
                WaitKind.TIMER,
                command.name,
                delay_us=wait.delay_us,
                deadline_us=wait.deadline_us,
            )
        assert isinstance(wait, EventWait)  # noqa: S101, there are two
        shape = self.host.known_shape(wait.pattern, wait.paths)
        if wait.from_registration:
            since = _REGISTRATION
        elif wait.paths:
            since = self.chain_started_at - (KEYED_GRACE_US if wait.lookback_us is None else wait.lookback_us)
        else:
            since = self.created_at - (wait.lookback_us or 0)
        return NewWait(
            command.seq,
            WaitKind.EVENT,
            command.name,
            hash=wait.hash,
            shape_id=None if shape is None else shape.id,
            cursor=self._cursors.get(wait.hash, 0),
            since_us=since,
            skip=self.start_event,
            delay_us=wait.timeout_us if deadline_us is None else None,
            deadline_us=deadline_us,
        )

    # ------------------------------------------------------------------ turns

    def _open_turn(self) -> Turn:
        if self._turn is None:
            self._turn = Turn(self.id, self.host.owner, self.fence, self.signals)
        return self._turn

    def _release(self) -> Release:
        """How the turn that is written now may end the ownership."""
        if self._loading or self._in_flight is not None:
            return Release.KEEP
        if self._forced is not None:
            return Release.END
        if self._root is None:
            return Release.KEEP
        if self._past or self._due or self._ready or self._undelivered:
            return Release.KEEP  # the code has not seen all yet
        if self._root.done():
            return Release.END
        if self._active or self._held or self._preparing or self._runloop.foreign or self._fresh:
            return Release.KEEP
        if self.host.stopping:
            return Release.YIELD
        return Release.PARK if self._commands else Release.END

    def take_turn(self) -> Turn | None:
        """The journal writes now: hand over the merged turn."""
        if self.closed:
            return None
        release = self._release()
        if self._turn is None and release is Release.KEEP:
            return None
        turn, self._turn = self._open_turn(), None
        turn.signals = self.signals
        turn.release = release
        turn.reset_recoveries = self.recoveries > 0
        if release is Release.END:
            self._write_outcome(turn)
        self._in_flight = turn
        self._in_flight_speculative, self._speculative = self._speculative, False
        return turn

    def _write_outcome(self, turn: Turn) -> None:
        root = self._root
        error: BaseException | None
        if self._forced is not None:
            turn.end_state, error = self._forced
        elif root is None or not root.done():
            turn.end_state = State.FAILED
            error = RuntimeError(
                f"workflow {self.definition.name!r} awaits something that nothing will ever end (not an activity, wait or timer)"
            )
        elif root.cancelled():
            turn.end_state, error = (
                State.FAILED,
                asyncio.CancelledError("the workflow was cancelled from within"),
            )
        else:
            turn.end_state, error = State.FAILED, root.exception()
            if error is None:
                turn.end_state = State.COMPLETED
                try:
                    turn.output, turn.output_type = encode(
                        root.result(), f"result of workflow {self.definition.name!r}"
                    )
                except ValueError as unstorable:
                    turn.end_state, error = State.FAILED, unstorable
        turn.error = None if error is None else encode_exception(error)
        self._outcome = error

    def flushed(self, turn: Turn, outcome: TurnResult | StorageDataError, now_us: int) -> None:
        """The journal's answer."""
        self._in_flight = None
        self._in_flight_speculative = False
        if self.closed:
            return
        if isinstance(outcome, StorageDataError):
            self._refused(turn, outcome)
            return
        self.host.saw_now(now_us)
        if outcome.applied in {Applied.LOST, Applied.EXISTS}:
            self._lost(outcome.applied)
            return
        self.recoveries = 0
        self._committed(turn, now_us)
        if outcome.applied is Applied.APPLIED and turn.release is not Release.KEEP:
            self._released(turn)
            return
        if outcome.applied is Applied.KEPT or outcome.signals != self.signals:
            self.load()
        held, self._held = self._held, []
        for command in held:
            if command.seq in self._commands:
                self._launch(command)
        self._advance()

    def _committed(self, turn: Turn, now_us: int) -> None:
        for record in turn.records:
            delivery = self._undelivered.pop(record.pos, None)
            if delivery is not None:
                self._ready[record.pos] = delivery
        for wait in turn.waits:
            deadline = now_us + wait.delay_us if wait.delay_us is not None else wait.deadline_us
            if deadline is not None:
                self.host.timer(deadline)
        self.host.committed(turn)
        if self._after_commit:
            done = [callback for written, callback in self._after_commit if written is turn]
            self._after_commit = [entry for entry in self._after_commit if entry[0] is not turn]
            for callback in done:
                callback()
        if turn.start is not None:
            self.created_at = now_us
            self.chain_started_at = turn.start.chain_started_at or now_us
            if self._born is not None and not self._born.done():
                self._born.set_result(None)
            self.host.loop.call_soon(self._begin_code)

    def load(self) -> None:
        """News came: read the waits again."""
        if not self._loading:
            self._loading = True
            self.host.load_soon(self)

    def loaded(self, loaded: LoadedInstance | None) -> None:
        """The waits as they are now (None: the database could not say; ask again later)."""
        self._loading = False
        if self.closed:
            return
        if loaded is not None:
            self.signals = loaded.signals
            self._take_rows(loaded)
        self._advance()

    def _take_rows(self, loaded: LoadedInstance) -> None:
        self._rows = {row.seq: row for row in loaded.waits}
        due = [row for row in loaded.waits if row.due]
        # Events in accept order, then what has run out; each choice is recorded, so any order would replay.
        due.sort(
            key=lambda row: (row.event is None, row.event.seq if row.event else row.deadline_us or 0, row.seq)
        )
        self._due = due

    @property
    def has_waits(self) -> bool:
        """Whether news may come for it while it is owned."""
        return any(command.registered for command in self._commands.values())

    # ------------------------------------------------------------------ the end

    def _released(self, turn: Turn) -> None:
        if turn.release is Release.PARK:
            visible = any(command.user_visible for command in self._commands.values())
            self._close(Released(State.WAITING, user_visible=visible))
        elif turn.release is Release.YIELD:
            self._close(Released(State.RUNNABLE))
        else:
            self._close(Released(turn.end_state, self._outcome))

    def _lost(self, applied: Applied) -> None:
        if applied is Applied.EXISTS:
            error = InstanceExistsError(
                f"instance {self.id!r}: the id, idempotency key or live key is taken; nothing was started"
            )
            self._close(Released(None, error))
        else:
            log.warning("ownership_lost", extra={"instance_id": self.id, "fence": self.fence})
            self._close(Released(None, OwnershipLostError(self.id, self.fence)))

    def _refused(self, turn: Turn, error: StorageDataError) -> None:
        """The database refuses a value of this turn: its activities fail with that; a second refusal ends the run."""
        if turn.start is not None:
            self._close(Released(None, error))
            return
        again = self._open_turn()
        salvaged = False
        for record in turn.records:
            delivery = self._undelivered.get(record.pos)
            if delivery is not None and record.kind == kinds.ACTIVITY:
                payload = encode_exception(error)
                again.records.append(
                    Record(
                        record.seq,
                        record.pos,
                        kinds.ACTIVITY_FAILED,
                        record.name,
                        payload,
                        None,
                        record.args_hash,
                    )
                )
                self._undelivered[record.pos] = (delivery[0], None, error)
                salvaged = True
            else:
                again.records.append(record)
        if not salvaged:
            self.doom(error)
            return
        self.host.journal.submit(self)

    def doom(self, reason: BaseException) -> None:
        """Give the instance up: dead-lettered with the reason, for an operator to look at."""
        self._forced = (State.DEAD, reason)
        self._advance()

    def wake(self) -> None:
        """The worker is stopping (or something else changed): look at what there is to do."""
        self._advance()

    def abandon(self) -> None:
        """Drop it from memory as a crash would; its owner's retirement re-queues it."""
        if not self.closed:
            self._close(Released(State.RUNNABLE))

    def born(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that ends when the start is committed."""
        self._born = loop.create_future()
        return self._born

    def lose(self) -> None:
        """The worker was declared dead: whatever this run has is another's now."""
        self._lost(Applied.LOST)

    def _drop_work(self) -> None:
        for task in self._active.values():
            task.cancel()
        self._active.clear()
        self._held.clear()
        self._fresh.clear()
        self._undelivered.clear()
        self._ready.clear()
        self._due.clear()
        self._past.clear()

    def _close(self, how: Released) -> None:
        self.closed = True
        self._drop_work()
        self._runloop.close_run()
        root, self._root = self._root, None
        if root is not None and root.done() and not root.cancelled():
            root.exception()  # read: it is told in the outcome, not by the garbage collector
        self._commands.clear()
        self.host.released(self, how)


def _user_line() -> str:
    """File and line of the code outside Edda (and asyncio) that is running now."""
    frame = sys._getframe(1)  # noqa: SLF001
    here = __name__.partition(".")[0]
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in {here, "asyncio"}:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        next_frame = frame.f_back
        if next_frame is None:
            break
        frame = next_frame
    return "its end"
