"""Random scripts on a database and on the oracle: whatever happens in whichever order, they answer the same.

A script is made from a seed alone. To see one again: ``-k 'seed-17'``.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from edda.storage.contract import Storage
from edda.storage.memory import MemoryStore
from edda.storage.memory import accept as memory
from edda.storage.mysql import accept as mysql
from edda.storage.postgresql import accept as postgresql
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    Beat,
    Chunk,
    ClaimedInstance,
    Expiring,
    FlushResult,
    NewDeadLetter,
    NewEvent,
    NewWait,
    OutboxMessage,
    PositionAdvance,
    RelayOutcome,
    Release,
    State,
    Sweep,
    Swept,
    Trigger,
    Turn,
)
from edda.storage.sqlite import accept as sqlite
from tests.storage import given
from tests.storage.conftest import OpenUrl
from tests.storage.given import APP, HOUR
from tests.storage.pair import Pair, Side, brief
from tests.support.databases import Database

IDS = [f"i{number}" for number in range(12)]
CHILDREN = [f"child {number}" for number in range(4)]
KEYS = ["a", "b", "c"]
PATTERNS = ["paid", "order.*"]
ORDERING = [None, "k", "l"]
ENDS = [State.COMPLETED, State.FAILED, State.PAUSED]


class Script:
    """One random life of a database."""

    def __init__(self, seed: int, pair: Pair) -> None:
        self.random = random.Random(seed)
        self.pair = pair
        self.number = 0
        self.workers: list[str] = []
        self.flushes: list[list[Turn]] = []
        self.batches: list[AcceptBatch] = []
        self.actions: list[tuple[int, Callable[[], Awaitable[Any]]]] = [
            (10, self.start),
            (30, self.flush),
            (6, self.flush_again),
            (12, self.accept),
            (4, self.accept_again),
            (12, self.claim),
            (4, self.insert),
            (5, self.fire_timers),
            (4, self.mark_due),
            (3, self.shape),
            (3, self.trigger),
            (3, self.workers_die),
            (3, self.worker_beats),
            (3, self.resume),
            (1, self.cancel),
            (8, self.relay),
            (3, self.look),
            (4, self.sweep),
            (6, self.time_passes),
        ]

    async def run(self, steps: int) -> None:
        weights = [weight for weight, _ in self.actions]
        for _ in range(2):
            await self.register()
        for _ in range(steps):
            (_, action) = self.random.choices(self.actions, weights)[0]
            await action()
            await self.pair.compare()

    # ------------------------------------------------------------------ pieces

    def some(self, options: list[Any], most: int = 2) -> list[Any]:
        return self.random.sample(options, self.random.randint(0, min(most, len(options))))

    def once_in(self, times: int) -> bool:
        return self.random.randrange(times) == 0

    def fresh(self, what: str) -> str:
        self.number += 1
        return f"{what} {self.number}"

    def a_wait(self) -> NewWait:
        seq = self.random.randint(1, 6)
        # Half hours, so that no deadline and no acceptance ever fall together.
        delay = self.random.choice([None, 0, HOUR, 3 * HOUR])
        if self.once_in(3):
            return given.timer(seq, delay_us=delay if delay is not None else HOUR)
        since = self.pair.oracle.began + self.random.randint(-2, 6) * HOUR + HOUR // 2
        return given.event_wait(
            seq,
            self.random.choice(KEYS),
            delay_us=delay,
            cursor=self.random.choice([0, 0, 1, 3, 6]),
            skip=self.random.choice([0, 0, 0, 1, 2, 5]),
            since_us=since if self.once_in(4) else None,
            detail=self.random.choice([None, b"detail"]),
        )

    def a_turn(self, name: str) -> Turn:
        row = self.pair.instances.get(name)
        fence, owner, signals = (row.fence, row.owner, row.signals) if row is not None else (1, None, 0)
        if owner is None or self.once_in(8):
            owner = self.random.choice(self.workers)
        if self.once_in(10):
            fence = max(0, fence + self.random.choice([-1, 1]))
        if self.once_in(5):
            signals += self.random.choice([-1, 1])
        turn = Turn(name, owner, fence, signals, reset_recoveries=self.once_in(3))
        known = [record.seq for record in self.pair.loaded[name].history] if name in self.pair.loaded else []
        following = max(known, default=0) + 1
        if self.once_in(2):
            first = self.random.choice(known) if known and self.once_in(6) else following
            turn.records += [
                given.record(first + more, pos=following + more) for more in range(self.random.randint(1, 2))
            ]
        turn.waits += {
            wait.seq: wait for wait in (self.a_wait() for _ in range(self.random.randint(0, 2)))
        }.values()
        registered = {wait.seq for wait in turn.waits}
        turn.drop_waits += [seq for seq in self.some(list(range(7))) if seq not in registered]
        if turn.records:  # without one, a repeat could not be told
            turn.outbox += [self.a_message() for _ in range(self.random.randint(0, 2))]
            turn.children += [given.instance(one, parent=name) for one in self.some(CHILDREN, 1)]
        turn.release = self.random.choice(
            [Release.KEEP, Release.KEEP, Release.PARK, Release.PARK, Release.END, Release.YIELD]
        )
        if turn.release is Release.END:
            self.end(turn)
        return turn

    def end(self, turn: Turn) -> None:
        turn.end_state = self.random.choice(ENDS)
        turn.output, turn.output_type = b"out", self.random.choice([None, "text/plain"])
        turn.error = self.random.choice([None, b"error"])
        if self.once_in(2):
            received = self.some(list(range(1, 12)), 4)
            turn.unread = given.unread(self.random.choice(KEYS), self.random.randint(0, 3), *received)
        if self.once_in(5):
            live = given.digest(f"live {turn.instance_id}")
            turn.successor = given.instance(self.fresh("next"), live_key=live, start_event=3)

    def a_message(self) -> OutboxMessage:
        return given.message(self.fresh("out"), ordering_key=self.random.choice(ORDERING))

    def an_event(self, position: int | None) -> NewEvent:
        name = f"e{self.random.randint(1, 25)}"
        return given.event(
            name,
            *self.some(KEYS),
            type=self.random.choice(["paid", "order.placed", "order"]),
            data_hash=given.digest("other" if self.once_in(10) else "data"),
            addressee=self.random.choice(IDS) if self.once_in(4) else None,
            position=position,
        )

    # ------------------------------------------------------------------ what happens

    async def register(self) -> None:
        worker = self.fresh("worker")
        self.workers.append(worker)
        await self.pair.ask(
            f"register {worker}", lambda side: side.store.register_worker(worker, APP, 2 * HOUR)
        )

    async def start(self) -> None:
        name = self.random.choice(IDS)
        live = given.digest(f"live {name}") if self.once_in(2) else None
        new = given.start(
            name,
            owner=self.random.choice(self.workers),
            live_key=live,
            chain=self.random.choice(["", "", IDS[0]]),
            records=[given.record(1)] if self.once_in(2) else [],
        )
        await self._flush([new])

    async def flush(self) -> None:
        running = [name for name in IDS if name in self.pair.instances and self.pair.instances[name].owner]
        among = running if running and not self.once_in(6) else IDS
        names = sorted(self.random.sample(among, min(len(among), self.random.choice([1, 1, 2, 3]))))
        await self._flush([self.a_turn(name) for name in names])

    async def flush_again(self) -> None:
        if self.flushes:
            await self._flush(self.random.choice(self.flushes[-3:]))

    async def _flush(self, turns: list[Turn]) -> None:
        self.flushes.append(turns)
        await self.pair.ask(f"flush {brief(turns)}", lambda side: side.store.flush(turns))

    async def accept(self) -> None:
        version = (await self.pair.oracle.store.routing()).version - self.once_in(15)
        start = given.instance(
            self.fresh("started"), live_key=given.digest("live i0") if self.once_in(2) else None
        )
        offset = self.random.randint(0, 3)
        positions = (PositionAdvance("c", "g", "t", 0, offset, offset + 1),) if self.once_in(2) else ()
        events = [
            self.an_event(0 if positions and self.once_in(2) else None)
            for _ in range(self.random.randint(0, 3))
        ]
        if events and self.once_in(3):
            events[0] = replace(events[0], starts=(start,))
        poison = (NewDeadLetter("x", b"raw", b"[]", "why", position=0 if positions else None),)
        batch = given.batch(
            self.fresh("batch"),
            *events,
            version=version,
            positions=positions,
            poison=poison if self.once_in(4) else (),
        )
        await self._accept(batch)

    async def accept_again(self) -> None:
        if self.batches:
            batch = self.random.choice(self.batches[-3:])
            version = (await self.pair.oracle.store.routing()).version
            await self._accept(replace(batch, routing_version=version))

    async def _accept(self, batch: AcceptBatch) -> None:
        self.batches.append(batch)
        result = await self.pair.ask(f"accept {brief(batch)}", lambda side: side.store.accept(batch))
        if isinstance(result, AcceptResult) and result.more_hashes:
            # What is left unmarked is old at once, lest it becomes so between the questions to the two sides.
            self.pair.move_clocks(1)

    async def claim(self) -> None:
        worker = self.random.choice([*self.workers, "nobody"])

        async def claim(side: Side) -> list[ClaimedInstance]:
            claimed = await side.store.claim(APP, ["order"], worker, 100)
            return sorted(claimed, key=lambda one: one.id)

        await self.pair.ask(f"claim by {worker}", claim)

        async def owned(side: Side) -> list[ClaimedInstance]:
            return sorted(await side.store.owned(worker), key=lambda one: one.id)

        await self.pair.ask(f"owned by {worker}", owned)

    async def insert(self) -> None:
        delay = self.random.choice([0, HOUR, 2 * HOUR])
        new = [
            given.instance(one, delay_us=delay, priority=self.random.randint(-1, 1)) for one in self.some(IDS)
        ]
        await self.pair.ask(f"insert {brief(new)}", lambda side: side.store.insert_instances(new))

    async def fire_timers(self) -> None:
        await self.pair.ask("fire timers", lambda side: side.store.fire_timers())

    async def mark_due(self) -> None:
        async def left(side: Side) -> list[bytes]:
            return sorted(await side.store.left_unmarked())

        hashes = await self.pair.ask("left unmarked", left)
        if not hashes or self.once_in(2):
            hashes = [given.digest(key) for key in self.some(KEYS, 3)]
        await self.pair.ask(f"mark due {brief(hashes)}", lambda side: side.store.mark_due(hashes))

    async def shape(self) -> None:
        pattern = self.random.choice(PATTERNS)

        async def register(side: Side) -> tuple[str, bool, int]:
            shape = await side.store.register_shape(pattern, ("data.id",))
            side.shapes[pattern] = shape.id
            return shape.pattern, shape.ready, shape.backfill_until

        await self.pair.ask(f"register shape {pattern}", register)
        await self.pair.ask(
            f"events of {pattern}", lambda side: side.store.events_of_pattern(pattern, 1, 9, 3)
        )
        events = await self.pair.oracle.store.events_of_pattern("*", 0, 99, 99)
        keys = [
            (given.digest(self.random.choice(KEYS)), event.addressee or "", event.seq)
            for event in self.some(events, 3)
        ]
        done = self.once_in(2)
        await self.pair.ask(
            f"backfill {brief(keys)} {done}",
            lambda side: side.store.backfill(side.shapes[pattern], keys, done),
        )
        if self.once_in(2):
            await self.mark_due()
        await self._routing()

    async def trigger(self) -> None:
        trigger = Trigger(
            APP,
            "order",
            self.random.choice(PATTERNS),
            key_path=self.random.choice([None, "data.id"]),
            policy="key",
        )
        await self.pair.ask(f"declare {brief(trigger)}", lambda side: side.store.declare_triggers([trigger]))
        await self._routing()

    async def _routing(self) -> None:
        async def routing(side: Side) -> tuple[Any, ...]:
            found = await side.store.routing()
            return found.version, [(one.pattern, one.ready) for one in found.shapes], found.triggers

        await self.pair.ask("routing", routing)

    async def workers_die(self) -> None:
        if self.once_in(2):
            worker = self.random.choice(self.workers)
            await self.pair.ask(f"retire {worker}", lambda side: side.store.retire_worker(worker))
            self.workers.remove(worker)
            await self.register()
        await self.pair.ask("requeue", lambda side: side.store.requeue_expired())

    async def worker_beats(self) -> None:
        worker = self.random.choice(self.workers)

        async def beat(side: Side) -> Beat:
            heart = side.store.heart()
            try:
                return await heart.beat(worker, APP, 2 * HOUR)
            finally:
                await heart.close()

        if not (await self.pair.ask(f"beat of {worker}", beat)).alive:
            self.workers.remove(worker)
            await self.register()
        await self.pair.ask("poll", lambda side: side.store.poll(APP))

    async def resume(self) -> None:
        name = self.random.choice(IDS)
        await self.pair.ask(f"resume {name}", lambda side: side.store.resume(name))

    async def cancel(self) -> None:
        name, detail = self.random.choice(IDS), self.random.choice([b"1", b"2"])
        await self.pair.ask(f"cancel {name}", lambda side: side.store.request_cancel(name, detail))
        worker = self.random.choice(self.workers)
        await self.pair.ask(f"cancelling of {worker}", lambda side: side.store.cancelling(worker))

    async def relay(self) -> None:
        owner = self.random.choice(["r1", "r1", "r2"])
        limit = self.random.choice([1, 2, 100])

        async def take(side: Side) -> tuple[Any, ...]:
            taken = await side.store.outbox_take("default", owner, HOUR, limit, 1 << 20)
            side.rows = {row.event_id: row.id for row in taken.rows}
            wait = taken.next_available_us
            return taken.held, taken.rows, None if wait is None else round(wait / HOUR)

        held, rows, _ = await self.pair.ask(f"take by {owner}", take)
        if not held:
            return
        fate = {
            row.event_id: self.random.choice(["ok", "ok", "failed", "dead", "parked", ""]) for row in rows
        }
        if self.once_in(4):
            owner = "r3"

        async def settle(side: Side) -> bool:
            def those(what: str) -> list[int]:
                return [side.rows[event_id] for event_id, end in fate.items() if end == what]

            outcome = RelayOutcome(
                tuple(those("ok")),
                tuple((row, HOUR, "failed") for row in those("failed")),
                tuple((row, "dead") for row in those("dead")),
                tuple(those("parked")),
            )
            return await side.store.outbox_settle("default", owner, outcome)

        await self.pair.ask(f"settle {fate} by {owner}", settle)
        if self.once_in(3):
            await self.pair.ask(
                f"release by {owner}", lambda side: side.store.outbox_release("default", owner)
            )

    async def sweep(self) -> None:
        owner = self.random.choice(["s1", "s1", "s2"])
        every = self.random.choice([0, HOUR // 2])
        sweep = await self.pair.ask(
            f"begin sweep of {owner}", lambda side: side.store.begin_sweep(owner, HOUR // 2, every)
        )
        sweep = sweep or Sweep(self.random.randint(1, 9), owner)
        for what in self.some(list(Expiring), 5):
            # Half hours, so that no age and no limit ever fall together.
            ago = self.random.choice([0, 2, 6, 12]) * HOUR + HOUR // 2
            dry = self.once_in(6)

            async def remove(
                side: Side, what: Expiring = what, ago: int = ago, dry: bool = dry
            ) -> Swept | None:
                before = await side.store.now() - ago
                chunk = Chunk(what, before, apps=((APP, before),), dry_run=dry)
                return await side.store.sweep(sweep, chunk, HOUR // 2)

            await self.pair.ask(f"sweep {what} of {ago / HOUR} hours ago by {sweep}", remove)
        if self.once_in(2):
            await self.pair.ask(f"end {sweep}", lambda side: side.store.end_sweep(sweep, 7 * HOUR // 2))
        await self.pair.ask("sweeps", lambda side: side.store.sweeps())

    async def look(self) -> None:
        states = self.some(list(State), 3)
        part = self.random.choice(["I", "child", "_", "%"])

        async def find(side: Side) -> list[str]:
            found = await side.store.find_instances(states=states, id_contains=part, limit=1_000)
            return sorted(row.id for row in found)

        await self.pair.ask(f"find {brief(states)} {part}", find)
        name, seq = self.random.choice(IDS), self.random.randint(1, 5)
        await self.pair.ask(f"fence of {name} {seq}", lambda side: side.store.record_fence(name, seq))
        await self.pair.ask(f"history of {name}", lambda side: side.store.get_history(name))

    async def time_passes(self) -> None:
        self.pair.move_clocks(self.random.choice([1, 1, 2, 3]))


async def play(seed: int, steps: int, tested: Storage) -> None:
    oracle = MemoryStore()
    await oracle.open()
    await Script(seed, await Pair.of(oracle, tested, [*IDS, *CHILDREN])).run(steps)


class _WakesNobody(MemoryStore):
    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        return await super().accept(
            replace(batch, events=tuple(replace(one, keys=()) for one in batch.events))
        )


class _KnowsNoFence(MemoryStore):
    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        rows = [await self.get_instance(turn.instance_id) for turn in turns]
        return await super().flush(
            [replace(turn, fence=row.fence if row else 1) for turn, row in zip(turns, rows, strict=True)]
        )


class _FiresEarly(MemoryStore):
    async def fire_timers(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        self.clock_offset_us += HOUR
        fired = await super().fire_timers(limit)
        self.clock_offset_us -= HOUR
        return fired


class _ForgetsTheSuccessor(MemoryStore):
    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        return await super().flush([replace(turn, successor=None) for turn in turns])


class _ForgetsWhatIsLeft(MemoryStore):
    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        result = await super().accept(batch)
        self._tables.unmarked = {}
        return result


class _SettlesForAnybody(MemoryStore):
    async def outbox_settle(self, destination: str, owner: str, outcome: RelayOutcome) -> bool:
        holder, _ = self._tables.leases.get(destination, (owner, 0))
        return await super().outbox_settle(destination, holder, outcome)


class _SweepsForAnybody(MemoryStore):
    async def sweep(self, sweep: Sweep | None, chunk: Chunk, lease_us: int) -> Swept | None:
        del sweep
        return await super().sweep(None, chunk, lease_us)


class _SweepsWhatWaitsToBeReceived(MemoryStore):
    async def sweep(self, sweep: Sweep | None, chunk: Chunk, lease_us: int) -> Swept | None:
        waits, self._tables.waits = self._tables.waits, {}
        try:
            return await super().sweep(sweep, chunk, lease_us)
        finally:
            self._tables.waits = waits


@pytest.mark.parametrize(
    "faulty",
    [
        *(_WakesNobody, _KnowsNoFence, _FiresEarly, _ForgetsTheSuccessor, _SettlesForAnybody),
        *(_SweepsForAnybody, _SweepsWhatWaitsToBeReceived),
    ],
)
async def test_a_fault_is_seen(faulty: type[MemoryStore]) -> None:
    assert await _is_seen(faulty)


async def _is_seen(faulty: type[MemoryStore]) -> bool:
    for seed in range(12):
        try:
            await play(seed, 80, faulty())
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("seed", range(2), ids=lambda seed: f"seed-{seed}")
async def test_a_database_answers_what_the_oracle_answers(
    database: Database, opened: OpenUrl, seed: int
) -> None:
    await play(seed, 80, await opened(database.url))


@pytest.fixture
def no_first_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept leaves all waits to be marked by others; which ones it marks first is each database's own business."""
    for module in (memory, mysql, postgresql, sqlite):
        monkeypatch.setattr(module, "FIRST_WAITS", 0)


@pytest.mark.usefixtures("no_first_waits")
async def test_a_fault_in_what_is_left_unmarked_is_seen() -> None:
    assert await _is_seen(_ForgetsWhatIsLeft)


@pytest.mark.usefixtures("no_first_waits")
@pytest.mark.parametrize("seed", range(2), ids=lambda seed: f"seed-{seed}")
async def test_a_database_that_leaves_all_waits_unmarked_answers_what_the_oracle_answers(
    database: Database, opened: OpenUrl, seed: int
) -> None:
    await play(seed, 80, await opened(database.url))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 106), ids=lambda seed: f"seed-{seed}")
async def test_a_database_answers_what_the_oracle_answers_for_long(
    database: Database, opened: OpenUrl, seed: int
) -> None:
    await play(seed, 200, await opened(database.url))
