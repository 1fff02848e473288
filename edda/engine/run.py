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
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json
from uuid_utils import uuid7

from edda.cloudevent import event_of
from edda.engine.attempt import run_activity
from edda.engine.block import Block
from edda.engine.chance import Chance
from edda.engine.clock import Clock
from edda.engine.commands import COMMAND_OF_WAIT, ActivityCall, Command, EventWait, TimerWait
from edda.engine.competing import take_message
from edda.engine.determinism import difference, mismatch
from edda.engine.draft import Delivery, Draft, Part, merge
from edda.engine.host import Host, Released, WorkflowDefinition
from edda.engine.observed import decode_event, encode_event
from edda.engine.outcome import Outcome, RecurError, outcome_of_task
from edda.engine.patches import Patches
from edda.engine.recur import Carried, recurred_output
from edda.engine.runloop import RunLoop
from edda.engine.telling import tell_of_activity, tell_of_end
from edda.engine.undo import Compensation, cancelled, compensate, decode_outcome, encode_outcome
from edda.engine.waiting import event_row, timer_row
from edda.errors import (
    InstanceExistsError,
    NonDeterminismError,
    OwnershipLostError,
    StorageDataError,
    TransactionError,
)
from edda.history import records as kinds
from edda.history.codec import decode, decode_exception, encode_exception
from edda.history.event_input import encode_input
from edda.received import received
from edda.storage.rows import (
    CANCEL_SEQ,
    COMPENSATING_SEQ,
    ENDED,
    Applied,
    LoadedInstance,
    NewInstance,
    NewWait,
    OutboxMessage,
    Record,
    Release,
    State,
    Turn,
    TurnResult,
    Unread,
    WaitKind,
    WaitRow,
)

if TYPE_CHECKING:
    from edda.storage.rows import ClaimedInstance, EventRow

log = logging.getLogger("edda.engine")

_NO_PAYLOAD = b"null"

_FAILED = frozenset(
    {kinds.ACTIVITY_FAILED, kinds.COMPENSATION_FAILED, kinds.PUBLISH_FAILED, kinds.BLOCK_FAILED}
)


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
        self.live_key: bytes | None = None
        self.closed = False
        self.replaying = False
        self.telling = host.telling()
        self.clock, self._patches = Clock(), Patches()

        self._chance: Chance | None = None
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
        self._unregistered: list[Command] = []  # waits that are not handed to a turn yet
        self._preparing_shapes = False
        self._active: dict[int, asyncio.Task[None]] = {}
        self._preparing = 0
        self._carried = Carried()
        self._ready: dict[int, Delivery | None] = {}
        self._draft = Draft()
        self._in_flight: list[Part] | None = None
        self._loading = False
        self._born: asyncio.Future[None] | None = None
        self._forced: Outcome | None = None  # how the engine itself ends it
        self._ended_with: BaseException | None = None
        self._successor: NewInstance | None = None
        self._block: Block | None = None  # that the code is in
        self._open: Block | None = None  # that is not committed yet: nothing else is written
        self._restarting = self._advancing = False
        self._stopping = False  # its code is being dropped, and asks for nothing any more
        self._cancel: Outcome | None = None  # somebody wants it cancelled
        self._compensations: list[Compensation] = []
        self._outcome: Outcome | None = None  # of its code, which has ended
        self._undoing: Outcome | None = None  # how it will end, once everything is undone

    @classmethod
    def of(cls, host: Host, definition: WorkflowDefinition, instance: ClaimedInstance) -> Run:
        """The run of a claimed instance."""
        run = cls(host, definition, instance.id, instance.fence)
        run.input = instance.input
        run.chain = instance.chain
        run.chain_started_at = instance.chain_started_at
        run.created_at = instance.created_at
        run.start_event = instance.start_event
        run.recoveries = instance.recoveries
        run.live_key = instance.live_key
        run.carry(instance.carried)
        return run

    # ------------------------------------------------------------------ beginning

    def begin_new(self, start: NewInstance) -> None:
        """A start: the instance's own row goes first; the code begins when it is committed."""
        self.input = start.input
        self.chain = start.chain or start.id
        if start.chain_started_at is None:
            # Said by us: the answer to this commit may be lost, and it is where the run's clock begins.
            start = replace(start, chain_started_at=self.host.now_us())
        self.write(Part(start=start))

    def begin_successor(self, new: NewInstance, born_us: int) -> None:
        """It goes on where another run has ended, and is stored already."""
        self.input, self.chain, self.start_event = new.input, new.chain, new.start_event
        self.created_at, self.chain_started_at = born_us, new.chain_started_at or born_us
        self.live_key = new.live_key
        self.carry(new.carried)
        self._tell_start()
        self._begin_code()

    def begin_claimed(self, loaded: LoadedInstance) -> None:
        """A claim: replay the history, then go on."""
        self.signals = loaded.signals
        self._past.extend(loaded.history)
        self._by_seq = {record.seq: record for record in loaded.history}
        if loaded.history:
            self._pos = self._next = loaded.history[-1].pos + 1
        self._take_rows(loaded)
        self._patches.seen(loaded.history, loaded.waits)
        self.replaying = bool(self._past)
        if not self._past and not loaded.waits and not self.recoveries:
            self._tell_start()
        self._begin_code()

    def _tell_start(self) -> None:
        if self.telling is not None:
            self.telling.tell("on_workflow_start", self.id, self.definition.name, from_json(self.input))

    def _begin_code(self) -> None:
        self.clock.begin(self._started_us)
        self._root = self._runloop.create_task(self.definition.entry(self), name=f"edda:{self.id}")
        self._advance()

    # ------------------------------------------------------------------ commands (called by the workflow's code)

    def compensation(self, what: Compensation) -> asyncio.Future[Any]:
        """Ask for what undoes a step."""
        return self.activity(
            ActivityCall(what.name, what.invoke, what.policy, None, undoes=True), what.args_hash
        )

    def register_compensation(self, compensation: Compensation) -> None:
        """Should the run fail or be cancelled from here on, this runs, before those registered earlier."""
        if self._undoing is None:
            self._compensations.append(compensation)

    def activity(self, call: ActivityCall, args_hash: bytes) -> asyncio.Future[Any]:
        """Ask for an activity's result."""
        command = self._command("activity", call.name, args_hash)
        command.call = call
        if self._block is not None and not self._block.past:
            command.block = self._block
        return command.future

    def wait_event(self, wait: EventWait, name: str) -> asyncio.Future[Any]:
        """Ask for the next event that fits; the future gives a CloudEvent, or None for a timeout."""
        self.need_no_block("wait_event()")
        command = self._command("wait_event", name, None)
        command.wait = wait
        return command.future

    def sleep(self, wait: TimerWait, name: str) -> asyncio.Future[Any]:
        """Ask for a timer."""
        self.need_no_block("sleep()")
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

    def transaction(self) -> Block:
        """Open a block: the activities inside are one turn."""
        self.need_no_block("another 'ctx.transaction()'")
        command = self._command("transaction", "transaction", None)
        self._block = Block(self, command, past=command.seq in self._by_seq)
        if self._open is None:
            self._begin_block()
        return self._block

    def patched(self, change: str) -> bool:
        """Which way to go: see ``patches.py``. A marker goes with the next turn, before anything of the new way."""
        if self.closed:
            raise _Refused
        answer = self._patches.known(change, self._seq)
        if answer is not None:
            return answer
        marker = self._record(self._patches.marked(change), kinds.PATCH, change, _NO_PAYLOAD, None, None)
        self.skip(marker)
        if self._block is not None and not self._block.past:
            self._block.observe(marker, None, None)
        else:
            self.write(Part(marker, speculative=True))
        return True

    @property
    def chance(self) -> Chance:
        """Where the code's random numbers come from."""
        if self._chance is None:
            self._chance = Chance(self.id, self._started_us)
        return self._chance

    @property
    def _started_us(self) -> int:
        # Never the time of a commit as its answer tells it: that may be lost, and be told otherwise the second time.
        return self._carried.at or (self.chain_started_at if self.chain == self.id else self.created_at)

    def _begin_block(self) -> None:
        if self._block is not None and not self._block.past:
            self._open = self._block
            self._draft.shut()

    def leave_block(self, block: Block) -> None:
        """The code is behind it."""
        if self._block is block:
            self._block = None

    def close_block(self, block: Block, write: Callable[[], None] | None = None) -> None:
        """It is committed or rolled back; what it leaves to ``write``, and then what others have come to."""
        if self._open is block:
            self._open = None
            self._draft.open()
            if write is not None:
                write()
            for observe in block.behind:
                observe()
            self._begin_block()  # of a task that has come to the next one meanwhile
            self._launch_held()

    def need_no_block(self, what: str) -> None:
        """Raises TransactionError inside ``ctx.transaction()``."""
        if self._block is not None:
            msg = (
                f"{what} inside 'ctx.transaction()' of workflow {self.definition.name!r}: it is one transaction, "
                "and nothing may wait in it. Nothing was written; close the block first."
            )
            raise TransactionError(msg)

    def _command(self, kind: str, name: str, args_hash: bytes | None) -> Command:
        if self.closed or self._stopping:
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
            if kind not in {"send_event", "transaction", "stop"}:
                self._fresh.append(command)
        self._commands[command.seq] = command
        return command

    def _check(self, command: Command, kind: str, name: str, args_hash: bytes | None) -> None:
        found = difference(
            command,
            kind,
            name,
            args_hash,
            strict=self.host.strict_arguments,
            instance_id=self.id,
            workflow=self.definition.name,
        )
        if found is not None:
            raise self._mismatched(command.seq, *found)

    def _mismatched(self, seq: int, expected: str, got: str) -> NonDeterminismError:
        error = mismatch(self.id, self.definition.name, seq, expected, got)
        self._forced = self._forced or Outcome(State.PAUSED, error)
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
        committed: Callable[[], None] | None = None,
        not_before: int = 0,
    ) -> None:
        """Write a result down. Delivered when that is committed, or at once if speculative."""
        block = self._open
        inside = block is not None and (
            command.block is block or (command.kind == "send_event" and self._block is block)
        )
        if block is not None and not inside:
            block.behind.append(
                lambda: self.observe(
                    command,
                    kind,
                    payload,
                    content_type,
                    value,
                    error,
                    speculative=speculative,
                    outbox=outbox,
                    committed=committed,
                    not_before=not_before,
                )
            )
            return
        record = self.next_record(command, kind, payload, content_type, not_before)
        delivery = Delivery(command, value, error)
        if inside and block is not None:
            block.observe(record, outbox, committed)
            self.deliver(record, delivery)
            return
        if speculative:
            self._ready[record.pos] = delivery
        drop = command.seq if command.registered else None
        self.write(Part(record, delivery, speculative, None, drop, outbox or (), None, committed))

    def next_record(
        self, command: Command, kind: str, payload: bytes, content_type: str | None, not_before: int = 0
    ) -> Record:
        """A record at the next place of the observed order, and of the time that it is now."""
        return self._record(
            command.seq, kind, command.name, payload, content_type, command.args_hash, not_before
        )

    def _record(
        self,
        seq: int,
        kind: str,
        name: str,
        payload: bytes,
        content_type: str | None,
        args_hash: bytes | None,
        not_before: int = 0,
    ) -> Record:
        pos = self._pos
        self._pos += 1
        at = self.clock.stamp(pos, self.host.now_us(), not_before)
        return Record(seq, pos, kind, name, payload, content_type, args_hash, at)

    def observed_elsewhere(self, record: Record, command: Command, value: Any) -> None:
        """A record was committed by the user's own transaction."""
        if command.registered:
            self.write(Part(drop_wait=command.seq))
        self.deliver(record, Delivery(command, value, None))

    def deliver(self, record: Record, delivery: Delivery) -> None:
        """Hand a result to the code, in its order."""
        self._ready[record.pos] = delivery
        self.host.loop.call_soon(self._advance)

    def skip(self, record: Record) -> None:
        """A record was not written after all; its place stays empty."""
        self._ready[record.pos] = None

    def backoff(
        self, command: Command, delay: float, detail: bytes, committed: Callable[[], None] | None
    ) -> None:
        """Make a failed attempt durable: a wait row of kind retry. Without ``committed`` the run may park on it."""
        command.registered = True
        if committed is None:
            self._active.pop(command.seq, None)
        wait = NewWait(
            command.seq, WaitKind.RETRY, command.name, delay_us=int(delay * 1_000_000), detail=detail
        )
        self.write(Part(wait=wait, committed=committed))

    def write(self, part: Part) -> None:
        """Put it into the next turn."""
        self._draft.add(part)
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
                if self.replaying and self._awaits_its_own():
                    return  # its end wakes us
                if not self._deliver_next():
                    break
        finally:
            self._advancing = False
        self._settle()

    def _awaits_its_own(self) -> bool:
        """Whether replay must wait for something that the code awaits beside commands.

        A timer (``asyncio.timeout``) is waited for only where the history cannot go on without it: then it has struck.
        """
        if self._past and self._past[0].kind == kinds.COMPENSATING and self._past[0].seq <= self._seq + 1:
            return False  # it was stopped here, whatever it awaited
        if self._runloop.foreign > self._runloop.timers:
            return True
        return bool(self._runloop.timers and self._past and self._past[0].seq not in self._commands)

    def _deliver_next(self) -> bool:
        if self._past:
            self._deliver_past(self._past.popleft())
            return True
        self.replaying = False
        while self._next in self._ready:
            pos, entry = self._next, self._ready.pop(self._next)
            self._next += 1
            if entry is None:
                self.clock.skipped(pos)
                continue
            self.clock.delivered(pos)
            self._complete(*entry)
            return True
        if self._due and self._open is None:
            self._apply(self._due.pop(0))
            return True
        return False

    def _deliver_past(self, record: Record) -> None:
        if record.kind == kinds.PATCH:
            return  # no command's result
        if record.kind == kinds.COMPENSATING and self._undoing is None:
            self._stop_code(decode_outcome(record.payload))
        command = self._commands.get(record.seq)
        if command is None:
            what = "ends" if self._root is not None and self._root.done() else "does not come to it"
            self._mismatched(record.seq, f"{kinds.COMMAND_OF[record.kind]} {record.name!r}", what)
            return
        self.clock.replayed(record)
        if record.kind in {kinds.ACTIVITY, kinds.COMPENSATION}:
            adapter = command.call.adapter if command.call is not None else None
            try:
                value = decode(record.payload, record.content_type, adapter)
            except ValueError as error:
                self._complete(command, None, error)
                return
            self._complete(command, value, None)
        elif record.kind in _FAILED:
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
        if self.telling is not None:
            tell_of_activity(self, self.telling, command, value, error)
        future = command.future
        if error is None and command.call is not None and command.call.undone_by is not None:
            # Also where the code gave up on it, or has ended: what was done must be undone.
            self.register_compensation(command.call.undone_by(value))
        if future.done():
            return  # the code gave up on it
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _received(self, command: Command, seq: int) -> None:
        if self.live_key is not None:
            self._carried.received.add(seq)
        if isinstance(command.wait, EventWait):
            self._carried.cursors[command.wait.hash] = max(
                seq, self._carried.cursors.get(command.wait.hash, 0)
            )

    def _apply(self, row: WaitRow) -> None:
        """A wait that is due: choose what ends it, by data alone."""
        command = self._commands.get(row.seq)
        if command is None or command.future.done():
            if row.seq <= self._seq:
                # Its result was committed by the user's own transaction, and the process died before it dropped this.
                self.write(Part(drop_wait=row.seq))
            return
        if row.kind is WaitKind.RETRY:
            detail = from_json(row.detail or b"{}")
            attempt = int(detail.get("attempt", 0)) + 1
            # An earlier attempt's row was read before this one's replaced it: that is no reason to try now.
            if command.seq not in self._active and attempt >= command.attempt:
                command.attempt = attempt
                command.first_us = int(detail.get("first_us", 0))
                self._launch(command)
        elif row.kind is WaitKind.TIMER:
            self.observe(
                command,
                kinds.TIMER,
                _NO_PAYLOAD,
                None,
                None,
                speculative=True,
                not_before=row.deadline_us or 0,
            )
        elif row.kind is WaitKind.EVENT and isinstance(command.wait, EventWait):
            self._apply_event(command, command.wait, row)

    def _apply_event(self, command: Command, wait: EventWait, row: WaitRow) -> None:
        event = row.event
        if event is not None and (row.deadline_us is None or event.accepted_at <= row.deadline_us):
            if wait.competing and event.addressee is None:
                self._take(command, wait, row)
                return
            if event.seq <= self._carried.cursors.get(wait.hash, 0):
                # Another wait of the same shape received it in this very turn: look again behind it.
                self.write(Part(wait=self._new_wait(command, row)))
                return
            self._received(command, event.seq)
            payload, decoded = encode_event(event)
            if self.telling is not None:
                self.telling.tell("on_event_received", self.id, decoded.type, received(decoded).data)
            self.observe(
                command, kinds.EVENT, payload, None, decoded, speculative=True, not_before=event.accepted_at
            )
        elif row.deadline_us is not None and row.deadline_us <= self.host.now_us():
            self.observe(
                command,
                kinds.EVENT_TIMEOUT,
                _NO_PAYLOAD,
                None,
                None,
                speculative=True,
                not_before=row.deadline_us,
            )

    def _take(self, command: Command, wait: EventWait, row: WaitRow) -> None:
        """Take a message of a competing channel, in a transaction of its own; another may be faster."""
        if command.seq not in self._active:
            taking = take_message(self, command, wait, row)
            self._active[command.seq] = self.host.loop.create_task(taking)

    def took_nothing(self, command: Command, row: WaitRow, position: int) -> None:
        """Whatever woke the wait was taken by others: wait for what comes behind all that is taken."""
        self._active.pop(command.seq, None)
        if not self.closed and command.seq in self._commands and row.event is not None:
            cursor = max(row.event.seq, position)
            self.write(Part(wait=self._new_wait(command, replace(row, cursor=cursor))))
            self.host.loop.call_soon(self._advance)

    # ------------------------------------------------------------------ at rest: what now?

    def _settle(self) -> None:
        if self._forced is not None:
            self._drop_work()
            self._draft.clear()  # whatever the code did since the last commit is not to be trusted
            self.host.journal.submit(self)
            return
        if self._restarting:
            self.host.journal.submit(self)
            return
        self._forget_cancelled()
        if self._is_to_be_stopped():
            self._stop_bodies()
            self._begin_fresh()
            if self._is_quiet() and not self._preparing and not self._active:
                self._stop()
            if self._draft or self._forced is not None:
                self.host.journal.submit(self)
            return
        self._begin_fresh()
        if self._draft or self._release() is not Release.KEEP:
            self.host.journal.submit(self)

    def _begin_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        for command in fresh:
            if command.seq not in self._commands:
                continue
            if command.call is not None:
                if command.seq not in self._rows:  # else: a failed attempt, which its backoff's timer wakes
                    self._launch(command)
            elif not command.registered:
                self._unregistered.append(command)
        if self._unregistered:
            self._register()

    # ------------------------------------------------------------------ cancelled or failed: undo

    def _is_to_be_stopped(self) -> bool:
        """Whether its code goes on no more, and what it did is still to be undone."""
        if self._undoing is not None or self._root is None:
            return False
        if self._cancel is not None:
            return True
        if not self._root.done():
            return False
        # An activity that something undoes is let finish first.
        pending = bool(self._compensations) or any(map(self._is_protected, self._active))
        return pending and self._outcome_of_code().state is State.FAILED

    def _outcome_of_code(self) -> Outcome:
        """What has become of its code; encoded once, where it has ended."""
        if self._outcome is not None:
            return self._outcome
        outcome = outcome_of_task(self._root, self.definition.name)
        if self._root is not None and self._root.done():
            self._outcome = outcome
        return outcome

    def _is_protected(self, seq: int) -> bool:
        command = self._commands.get(seq)
        return command is not None and command.undone_by and command.in_body

    def _is_quiet(self) -> bool:
        """Whether all that was observed has been written down and seen by the code."""
        unseen = self._past or self._due or self._ready or self._draft.holds_results
        return (
            not unseen
            and self._block is None
            and self._open is None
            and not self._loading
            and self._in_flight is None
        )

    def _stop_bodies(self) -> None:
        """Activities are cancelled; but one that something undoes is let finish, so that it is known what to undo."""
        # A block goes on to its end: the code has seen results that only its commit, or its rollback, writes down.
        self._fresh = [command for command in self._fresh if command.block is not None]
        self._held = [command for command in self._held if command.block is not None]
        self._unregistered.clear()
        for seq in list(self._active):
            command = self._commands.get(seq)
            if command is not None and (command.block is not None or self._is_protected(seq)):
                command.given_up = True  # it is not tried again
            else:
                self._give_up(seq)

    def _give_up(self, seq: int) -> None:
        task = self._active.pop(seq, None)
        if task is not None:
            task.cancel()

    def _stop(self) -> None:
        outcome = self._cancel or self._outcome_of_code()
        if self._compensations:
            self._stop_code(outcome)
        elif self._cancel is not None:
            self._forced = outcome
            self._drop_work()

    def _stop_code(self, outcome: Outcome) -> None:
        """Drop the code where it stands; the compensations are the run's code now."""
        dropped = [command.seq for command in self._commands.values() if command.registered]
        self._drop_code()
        self._undoing = outcome
        command = self._command("stop", "stop", None)
        self._root = self._runloop.create_task(compensate(self, command, self._compensations))
        if command.seq in self._by_seq:
            return
        for seq in dropped:
            self.write(Part(drop_wait=seq))
        self.write(Part(drop_wait=CANCEL_SEQ))
        self.write(Part(wait=NewWait(COMPENSATING_SEQ, WaitKind.COMPENSATING, outcome.state)))
        self.observe(command, kinds.COMPENSATING, encode_outcome(outcome), None, None)

    def _drop_code(self) -> None:
        self._stopping = True
        self._runloop.close_run()
        self._stopping = False
        self._forget_root()
        self._commands.clear()
        self._fresh.clear()
        self._unregistered.clear()
        self._block = None
        if self._open is not None:
            self.close_block(self._open)  # of a replay: nothing of it was kept
        self._runloop = RunLoop(self.host.loop, self._advance)  # type: ignore[abstract]

    def _forget_cancelled(self) -> None:
        for command in [command for command in self._commands.values() if command.future.cancelled()]:
            del self._commands[command.seq]
            self._give_up(command.seq)
            if command.registered:
                self.write(Part(drop_wait=command.seq))

    def _launch(self, command: Command) -> None:
        """Start an activity's body, but never while something the code has seen is not committed."""
        if command.block is not None and self._open is command.block:
            held = self._draft.ready or bool(self._in_flight)
        else:
            held = command.block is not None or self._draft.speculative or self._is_in_flight_speculative()
        if held:
            self._held.append(command)
            return
        if self.host.stopping or (command.block is None and self._is_to_be_stopped()):
            return
        self._active[command.seq] = self.host.loop.create_task(run_activity(self, command))

    def _is_in_flight_speculative(self) -> bool:
        return any(part.speculative for part in self._in_flight or ())

    def _launch_held(self) -> None:
        held, self._held = self._held, []
        for command in held:
            if command.seq in self._commands:
                self._launch(command)

    def _register(self) -> None:
        """Register the new waits in one turn, so that of several events that are there the first accepted wins."""
        new = [command for command in self._unregistered if command.seq in self._commands]
        missing = [command for command in new if not self._has_shape(command.wait)]
        if not missing:
            self._unregistered = []
            for command in new:
                command.registered = True
                self.write(Part(wait=self._new_wait(command, None)))
        elif not self._preparing_shapes:
            self._preparing_shapes = True
            self.hold()
            task = self.host.loop.create_task(self._ensure_shapes([command.wait for command in missing]))
            task.add_done_callback(lambda done: self._prepared(missing, done))

    def _has_shape(self, wait: EventWait | TimerWait | None) -> bool:
        return not isinstance(wait, EventWait) or self.host.known_shape(wait.pattern, wait.paths) is not None

    async def _ensure_shapes(self, waits: list[EventWait | TimerWait | None]) -> None:
        for wait in waits:
            if isinstance(wait, EventWait):
                await self.host.ensure_shape(wait.pattern, wait.paths)

    def _prepared(self, commands: list[Command], task: asyncio.Task[None]) -> None:
        self._preparing_shapes = False
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self.let_go()
        if self.closed:
            return
        if error is not None:
            for command in commands:
                self._complete(command, None, error)
        if self._undoing is None and self._forced is None:
            self._register()

    def _new_wait(self, command: Command, row: WaitRow | None) -> NewWait:
        wait = command.wait
        if isinstance(wait, TimerWait):
            return timer_row(command, wait)
        assert isinstance(wait, EventWait)  # noqa: S101, there are two
        return event_row(
            command,
            wait,
            self.host.known_shape(wait.pattern, wait.paths),
            cursor=self._carried.cursors.get(wait.hash, 0),
            start_event=self.start_event,
            chain_started_at=self.chain_started_at,
            replaces=row,
        )

    # ------------------------------------------------------------------ turns

    def _release(self) -> Release:
        """How the turn that is written now may end the ownership."""
        if self._in_flight is not None or (self._loading and not self._restarting):
            return Release.KEEP
        if self._restarting:
            return Release.YIELD
        if self._forced is not None:
            return Release.END
        if self._root is None or not self._is_quiet() or self._is_to_be_stopped():
            return Release.KEEP  # the code has not seen all yet, or will not end as it stands
        if self._root.done():
            return Release.END
        if self._active or self._held or self._preparing or self._runloop.foreign or self._fresh:
            return Release.KEEP
        if self.host.stopping:
            return Release.YIELD
        return self._rest()

    def _rest(self) -> Release:
        """Nothing more can run: it waits for what it has asked for, or for nothing that will ever end."""
        if self._commands:
            return Release.PARK
        return Release.KEEP if self._runloop.touched else Release.END  # a connection of its own may wake it

    def take_turn(self) -> Turn | None:
        """The journal writes now: hand over the merged turn."""
        if self.closed:
            return None
        release = self._release()
        if not self._draft.ready and release is Release.KEEP:
            return None
        alone = self._draft.alone
        parts = self._draft.take()
        if alone or self._draft:
            release = Release.KEEP  # the rest goes next
        turn = Turn(self.id, self.host.owner, self.fence, self.signals, release=release)
        merge(parts, turn)
        turn.reset_recoveries = self.recoveries > 0
        if release is Release.END:
            self._end(turn)
        self._in_flight = parts
        return turn

    def _end(self, turn: Turn) -> None:
        outcome = self._forced or self._undoing or self._outcome_of_code()
        if isinstance(outcome.error, RecurError):
            turn.successor = self._next_in_chain(outcome.error)
            outcome = replace(outcome, output=recurred_output(outcome.error, turn.successor.id))
        turn.end_state = outcome.state
        turn.output, turn.output_type, turn.error = outcome.encoded()
        self._ended_with = None if outcome.state is State.RECURRED else outcome.error
        if self.live_key is not None and outcome.state in ENDED and turn.successor is None:
            turn.successor = self._successor
            if turn.successor is None:
                turn.unread = Unread(self.live_key, self.start_event, frozenset(self._carried.received))

    def flushed(self, turn: Turn, answer: TurnResult | StorageDataError, now_us: int) -> None:
        """The journal's answer."""
        parts, self._in_flight = self._in_flight or [], None
        if self.closed:
            return
        if isinstance(answer, StorageDataError):
            self._refused(turn, parts, answer)
            return
        self.host.saw_now(now_us)
        if answer.applied in {Applied.LOST, Applied.EXISTS}:
            self._lost(answer.applied)
            return
        self.recoveries = 0
        self._committed(turn, parts, now_us)
        if answer.applied is Applied.APPLIED and turn.release is not Release.KEEP:
            self._released(turn, now_us)
            return
        if answer.unread is not None:
            self._successor = self._next_run(answer.unread)
        elif answer.applied is Applied.KEPT or answer.signals != self.signals:
            self.load()
        self._launch_held()
        self._advance()

    def _next_run(self, event: EventRow) -> NewInstance:
        """Start-or-signal: what came for this key and was not received starts the next run."""
        return NewInstance(
            id=str(uuid7()),
            app=self.host.app,
            workflow=self.definition.name,
            input=encode_input(event_of(event)),
            version=self.host.current_version(self.definition.name),
            live_key=self.live_key,
            start_event=event.seq,
        )

    def _next_in_chain(self, recur: RecurError) -> NewInstance:
        """The run that goes on; this worker owns it at once, unless it is stopping."""
        return NewInstance(
            id=str(uuid7()),
            app=self.host.app,
            workflow=self.definition.name,
            input=recur.input,
            owner=None if self.host.stopping else self.host.owner,
            chain=self.chain,
            version=self.definition.version,
            live_key=self.live_key,
            chain_started_at=self.chain_started_at,
            carried=self._carried.encode(self.id, self.host.now_us()),
            start_event=self.start_event,
        )

    def carry(self, carried: bytes | None) -> None:
        """What earlier runs of the chain have received counts as received."""
        self._carried = Carried.decode(carried)

    def _committed(self, turn: Turn, parts: list[Part], now_us: int) -> None:
        for part in parts:
            if part.record is not None and not part.speculative:
                self._ready[part.record.pos] = part.delivery
        for wait in turn.waits:
            deadline = now_us + wait.delay_us if wait.delay_us is not None else wait.deadline_us
            if deadline is not None:
                self.host.timer(deadline)
        self.host.committed(turn)
        for part in parts:
            if part.committed is not None:
                part.committed()
        if turn.start is not None:
            self.created_at = now_us
            self.chain_started_at = turn.start.chain_started_at or now_us
            self._tell_start()
            if self._born is not None and not self._born.done():
                self._born.set_result(None)
            self.host.loop.call_soon(self._begin_code)

    def _refused(self, turn: Turn, parts: list[Part], error: StorageDataError) -> None:
        """The database refuses a value of this turn: find the part, and let its command fail with that."""
        if turn.start is not None:
            self._close(Released(None, error))
        elif parts and (len(parts) > 1 or turn.release is Release.END):
            self._draft.put_back(parts)
            self.host.journal.submit(self)
        elif not parts:
            # The outcome itself.
            self._forced = Outcome(
                turn.end_state if turn.end_state in ENDED else State.FAILED, error
            ).failed()
            self._advance()
        else:
            self._fail_alone(parts[0], error)

    def _fail_alone(self, part: Part, error: StorageDataError) -> None:
        record, failed = part.record, None
        if record is not None and part.delivery is not None:
            tried = isinstance(part.delivery.error, StorageDataError)
            failed = None if tried else kinds.FAILED_OF.get(record.kind)
        if record is None or part.delivery is None or failed is None:
            self.doom(error)
            return
        replacement = replace(record, kind=failed, payload=encode_exception(error), content_type=None)
        delivery = Delivery(part.delivery.command, None, error)
        self._draft.put_back([Part(replacement, delivery, drop_wait=part.drop_wait)])
        self.host.journal.submit(self)

    def hold(self) -> None:
        """Something of its own is under way that must not be cut off."""
        self._preparing += 1

    def let_go(self) -> None:
        """It is over."""
        self._preparing -= 1
        self.host.loop.call_soon(self._advance)

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
        asked = self._rows.pop(CANCEL_SEQ, None)
        if asked is not None:
            self._asked_to_cancel(asked)
        due = [row for row in loaded.waits if row.due and row.seq > CANCEL_SEQ]
        # Events in accept order, then what has run out; each choice is recorded, so any order would replay.
        due.sort(
            key=lambda row: (row.event is None, row.event.seq if row.event else row.deadline_us or 0, row.seq)
        )
        self._due = due

    def _asked_to_cancel(self, row: WaitRow) -> None:
        if self._undoing is None:
            self._cancel = self._cancel or cancelled(row.detail)
        elif not self._past:
            self.write(Part(drop_wait=CANCEL_SEQ))  # it is being undone already

    @property
    def cancelling(self) -> bool:
        """Whether somebody wants it cancelled, and that is known here."""
        return self._cancel is not None and self._undoing is None

    @property
    def subscriptions(self) -> dict[str, tuple[str, int]]:
        """The channels it listens to: mode, and the accept number behind which messages are seen."""
        return self._carried.subscriptions

    @property
    def has_waits(self) -> bool:
        """Whether news may come for it while it is owned."""
        return any(command.registered for command in self._commands.values())

    # ------------------------------------------------------------------ the end

    def _released(self, turn: Turn, now_us: int) -> None:
        if turn.release is Release.PARK:
            visible = any(command.user_visible for command in self._commands.values())
            self._close(Released(State.WAITING, user_visible=visible))
        elif turn.release is Release.YIELD:
            self._close(Released(State.RUNNABLE))
        else:
            self._close(Released(turn.end_state, self._ended_with, successor=turn.successor, at_us=now_us))

    def _lost(self, applied: Applied) -> None:
        if applied is Applied.EXISTS:
            error = InstanceExistsError(
                f"instance {self.id!r}: the id, idempotency key or live key is taken; nothing was started"
            )
            self._close(Released(None, error))
        else:
            log.warning("ownership_lost", extra={"instance_id": self.id, "fence": self.fence})
            self._close(Released(None, OwnershipLostError(self.id, self.fence)))

    def doom(self, reason: BaseException) -> None:
        """Give the instance up: dead-lettered with the reason, for an operator to look at."""
        self._forced = Outcome(State.DEAD, reason)
        self._advance()

    def restart(self) -> None:
        """Give it back: it is claimed and replayed again, from what is committed."""
        self._restarting = True
        self._drop_work()
        self._draft.clear()
        self.host.journal.submit(self)

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
        bodies = list(self._active.values())
        for task in bodies:
            task.cancel()
        self._active.clear()
        self._held.clear()
        self._fresh.clear()
        self._unregistered.clear()
        self._ready.clear()
        self._due.clear()
        self._past.clear()
        if self._open is not None:
            self._open.drop(bodies)
        self._block = self._open = None

    def _close(self, how: Released) -> None:
        how = replace(how, instance_id=self.id)
        if self.telling is not None and how.state in ENDED:
            tell_of_end(self, self.telling, how, self._root)
        self.closed = True
        self._drop_work()
        self._runloop.close_run()
        self._forget_root()
        self._commands.clear()
        self.host.released(self, how)

    def _forget_root(self) -> None:
        root, self._root = self._root, None
        if root is not None and root.done() and not root.cancelled():
            root.exception()  # read: it is told in the outcome, not by the garbage collector
