"""One lock order for all transactions: whoever meets, nobody deadlocks; and whoever does all the same hears nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.mysql import accept as mysql
from edda.storage.postgresql import accept as postgresql
from edda.storage.rows import Applied, Chunk, Expiring, NewInstance, RelayOutcome, Release, Turn, Verdict
from edda.storage.schema import events, history, instances, unmarked, waits, workers
from edda.storage.sqlite import accept as sqlite
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.deadlocks import Deadlocks
from tests.interleavings.raw import Raw
from tests.support.eventually import eventually

ROUNDS = 12
IDS = [f"i{number:02}" for number in range(16)]


@dataclass(slots=True)
class Meeting:
    """Two stores, one database; ``round`` makes what they write different each time."""

    store: Storage
    other: Storage
    round: int = 0
    removed: int = 0  # by sweeps

    def events(self, who: str, names: list[str]) -> Any:
        """A batch of events whose identities both parties use, each of which wakes the instance of its name."""
        made = (given.event(f"{self.round}-{name}", name) for name in names)
        return given.batch(f"{who}-{self.round}", *made)

    def steps(self, names: list[str], *, owner: str = "a", **options: Any) -> list[Turn]:
        """A turn per instance. Signals are not known here, so that no release is asked for."""
        return [given.step(name, 10 + self.round, owner=owner, **options) for name in names]

    def waiting(self, names: list[str]) -> list[Turn]:
        """A turn per instance that replaces its wait."""
        return [
            given.step(name, 10 + self.round, waits=[given.wait(2, name, cursor=10**9)]) for name in names
        ]


Party = Callable[[Meeting], Awaitable[Any]]


async def accept(m: Meeting) -> Any:
    return await m.store.accept(m.events("one", IDS))


async def accept_reversed(m: Meeting) -> Any:
    return await m.other.accept(m.events("two", IDS[::-1]))


async def accept_others_reversed(m: Meeting) -> Any:
    made = (given.event(f"other-{m.round}-{name}", name) for name in IDS[::-1])
    return await m.other.accept(given.batch(f"other-{m.round}", *made))


async def flush(m: Meeting) -> Any:
    result = await m.store.flush(m.steps(IDS))
    assert {one.applied for one in result.results} == {Applied.APPLIED}
    return result


async def flush_of_a_zombie_reversed(m: Meeting) -> Any:
    result = await m.other.flush(m.steps(IDS[::-1], owner="zombie"))
    assert {one.applied for one in result.results} == {Applied.LOST}
    return result


async def register_waits_reversed(m: Meeting) -> Any:
    return await m.store.flush(m.waiting(IDS[::-1]))


async def fire_timers(m: Meeting) -> Any:
    return await m.other.fire_timers()


async def mark_due(m: Meeting) -> Any:
    return await m.other.mark_due([given.digest(name) for name in IDS[::-1]])


async def claim(m: Meeting) -> Any:
    return await m.other.claim(given.APP, [given.WORKFLOW], "b", 5)


async def claim_too(m: Meeting) -> Any:
    return await m.store.claim(given.APP, [given.WORKFLOW], "a", 5)


async def requeue(m: Meeting) -> Any:
    return await m.other.requeue_expired()


async def retire(m: Meeting) -> Any:
    return await m.other.retire_worker("b")


async def heartbeat(m: Meeting) -> Any:
    heart = m.store.heart()
    try:
        return await heart.beat("a", given.APP, given.LEASE_US)
    finally:
        await heart.close()


async def start_children(m: Meeting) -> Any:
    turns = m.steps(IDS)
    for turn in turns:
        turn.children.append(given.instance(f"child-{m.round}-{turn.instance_id}"))
        turn.outbox.append(given.message(f"{m.round}-{turn.instance_id}"))
    return await m.store.flush(turns)


async def insert_the_children_reversed(m: Meeting) -> Any:
    return await m.other.insert_instances([given.instance(f"child-{m.round}-{name}") for name in IDS[::-1]])


async def accept_with_starts(m: Meeting) -> Any:
    made = [
        given.event(f"s-{m.round}-{name}", starts=[given.instance(f"child-{m.round}-{name}", live_key=name)])
        for name in IDS[::-1]
    ]
    return await m.other.accept(given.batch(f"starts-{m.round}", *made))


async def settle_the_outbox(m: Meeting) -> Any:
    taken = await m.other.outbox_take("default", "relay", given.LEASE_US, 100, 1 << 20)
    ids = [row.id for row in taken.rows][::-1]
    outcome = RelayOutcome(confirmed=tuple(ids[::2]), failed=tuple((one, 0, "later") for one in ids[1::2]))
    assert await m.other.outbox_settle("default", "relay", outcome)


async def turn_in_a_session(m: Meeting) -> Any:
    """As ``ctx.session`` commits: the user's statements, then ours, on one connection."""
    for name in IDS[::5]:
        async with m.store.engine().begin() as connection:
            turn = given.step(name, 1000 + m.round)
            turn.outbox.append(given.message(f"session-{m.round}-{name}"))
            result = await m.store.apply_in_session(connection, turn)
            assert result.applied is Applied.APPLIED


async def finish_a_shape(m: Meeting) -> Any:
    shape = await m.other.register_shape(f"type-{m.round}", ())
    keys = [(given.digest(name), "", 1) for name in IDS[::-1]]
    return await m.other.backfill(shape.id, keys, done=True)


async def accept_unwanted(m: Meeting) -> Any:
    made = (given.event(f"{m.round}-{name}", f"nobody's {name}") for name in IDS)
    return await m.store.accept(given.batch(f"one-{m.round}", *made))


async def accept_unwanted_reversed(m: Meeting) -> Any:
    made = (given.event(f"{m.round}-{name}", f"nobody's {name}") for name in IDS[::-1])
    return await m.other.accept(given.batch(f"two-{m.round}", *made))


async def end_children(m: Meeting) -> Any:
    """Instances that end at once, for sweeps."""
    names = [f"over-{m.round}-{name}" for name in IDS]
    await m.store.flush([given.start(name) for name in names])
    return await m.store.flush([given.step(name, 2, release=Release.END) for name in names])


async def sweep(m: Meeting) -> Any:
    """Everything that nothing live refers to, however young."""
    right = await m.other.begin_sweep(f"sweep-{m.round}", given.LEASE_US, 0)
    assert right is not None
    before = await m.other.now() + given.LEASE_US
    for what in Expiring:
        chunk = Chunk(what, before, apps=((given.APP, before),))
        swept = await m.other.sweep(right, chunk, given.LEASE_US)
        assert swept is not None
        m.removed += swept.removed
    await m.other.end_sweep(right, 1_000 * given.LEASE_US)


MEETINGS: dict[str, tuple[Party, ...]] = {
    "accepts of the same identities": (accept, accept_reversed),
    "accepts that wake the same instances": (accept, accept_others_reversed),
    "accept, flush": (accept_others_reversed, flush),
    "accept, flush, session": (accept_others_reversed, flush, turn_in_a_session),
    "accept, registration": (accept_others_reversed, register_waits_reversed),
    "accept, timers, marks": (accept, fire_timers, mark_due),
    "accept, claims": (accept, claim, claim_too),
    "accept, shape": (register_waits_reversed, finish_a_shape, mark_due),
    "flush, zombie's flush": (flush, flush_of_a_zombie_reversed),
    "flush, timers": (flush, fire_timers, mark_due),
    "requeue, flush": (requeue, flush_of_a_zombie_reversed, flush),
    "requeue, accept, claims": (requeue, accept, claim, claim_too),
    "requeue, retire, heartbeat": (requeue, retire, heartbeat, claim),
    "children, the same children": (start_children, insert_the_children_reversed),
    "children, accept's starts": (start_children, accept_with_starts),
    "accept, the same identities, sweep": (accept_unwanted, accept_unwanted_reversed, sweep),
    "accept, ends, sweep": (accept_others_reversed, end_children, sweep),
    "shape, ends, sweep": (finish_a_shape, end_children, sweep, mark_due),
    "claims, ends, requeue, sweep": (claim, claim_too, end_children, requeue, sweep),
    "outbox, relay": (start_children, settle_the_outbox, turn_in_a_session),
}

#: InnoDB locks gaps when two transactions insert beside each other into a unique index, whatever the order of their
#: rows, and may refuse one. It is run again, and no caller hears of it.
INSERT_SIDE_BY_SIDE = {"children, accept's starts"}


@pytest.fixture
async def meeting(store: Storage, other: Storage, raw: Raw) -> Meeting:
    """Instances of worker "a", half of which have timers that are over, all with waits; runnable ones for claims."""
    await store.accept(given.batch("first", given.event("first")))
    await store.flush([given.start(name) for name in IDS])
    await store.flush([given.step(name, 2, waits=[given.wait(2, name)]) for name in IDS])
    await store.flush([given.step(name, 3, waits=[given.timer(3, 0)]) for name in IDS[::2]])
    await store.insert_instances(
        [
            NewInstance(f"{way}{number}", given.APP, given.WORKFLOW, b"{}")
            for way in "az"
            for number in range(40)
        ]
    )
    return Meeting(store, other)


async def reset(meeting: Meeting, raw: Raw) -> None:
    """What one round has used up, for the next."""
    await raw.execute(sa.update(waits).values(due=False))
    await raw.execute(sa.update(workers).where(workers.c.id == "b").values(dead=False))
    await meeting.other.register_worker("b", given.APP, given.LEASE_US)


@pytest.mark.parametrize("name", MEETINGS)
async def test_no_two_transactions_deadlock(
    meeting: Meeting, raw: Raw, deadlocks: Deadlocks, name: str
) -> None:
    for meeting.round in range(ROUNDS):
        await asyncio.gather(*(party(meeting) for party in MEETINGS[name]))
        await reset(meeting, raw)
    if name not in INSERT_SIDE_BY_SIDE:
        assert await deadlocks.count(meeting.store, meeting.other) == 0
    assert meeting.removed > ROUNDS or "sweep" not in name


async def test_accepts_that_leave_waits_and_all_who_mark_them_do_not_deadlock(
    meeting: Meeting, raw: Raw, deadlocks: Deadlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each who marks forgets, at its end, what it found at its beginning: the same rows as the others do."""
    for module in (mysql, postgresql, sqlite):
        monkeypatch.setattr(module, "FIRST_WAITS", 3)
    hashes = [given.digest(name) for name in IDS]
    for meeting.round in range(ROUNDS):
        assert (await accept(meeting)).more_hashes
        await asyncio.gather(
            accept_others_reversed(meeting),
            *(
                store.mark_due(hashes, limit)
                for store in (meeting.store, meeting.other)
                for limit in (5, 1_000)
            ),
        )
        while (await meeting.store.mark_due(hashes))[1]:
            pass
        assert await raw.count(unmarked) == 0
        await reset(meeting, raw)
    assert await deadlocks.count(meeting.store, meeting.other) == 0


async def test_an_expired_workers_instances_in_any_order_do_not_deadlock_with_its_own_flushes(
    store: Storage, other: Storage, raw: Raw, deadlocks: Deadlocks
) -> None:
    """A zombie that flushes on while it is being declared dead: each of its turns is applied before, or lost."""
    owners = [f"w{number}" for number in range(ROUNDS)]
    for number, owner in enumerate(owners):
        await store.register_worker(owner, given.APP, 0)
        await store.flush([given.start(f"{number}-{name}", owner=owner) for name in IDS])
    other.clock_offset_us = 1_000_000

    async def flush_on(number: int, owner: str) -> list[Turn]:
        written = []
        for seq in (2, 3):
            turns = [given.step(f"{number}-{name}", seq, owner=owner) for name in IDS[::-1]]
            results = (await store.flush(turns)).results
            written += [t for t, r in zip(turns, results, strict=True) if r.applied is Applied.APPLIED]
        return written

    async with asyncio.TaskGroup() as group:
        flushing = [group.create_task(flush_on(number, owner)) for number, owner in enumerate(owners)]
        for _ in range(4):
            group.create_task(other.requeue_expired(37))
    while (await other.requeue_expired(37))[1]:
        pass
    written = sum(len(task.result()) for task in flushing)
    assert await raw.count(history) == len(owners) * len(IDS) + written
    fences = {row.fence for row in await raw.rows(instances.select())}
    assert fences == {2}
    assert await deadlocks.count(store, other) == 0


# ---------------------------------------------------------------------------------------------- victims

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)


@SERVERS
async def test_a_flush_that_is_the_victim_of_a_deadlock_runs_again_as_a_whole(
    store: Storage, raw: Raw, barrier: Barrier, deadlocks: Deadlocks
) -> None:
    """Users' own statements keep no order of ours. This is also what shows that the counter counts."""
    await store.flush([given.start("a"), given.start("z")])
    async with raw.transaction() as user:
        await raw.survive(user)
        await user.execute(sa.select(instances.c.id).where(instances.c.id == "z").with_for_update())
        turns = [given.step("a", 2), given.step("z", 2)]
        turns[0].outbox.append(given.message("m"))
        flushing = await barrier.waiting(store.flush(turns))
        await user.execute(sa.select(instances.c.id).where(instances.c.id == "a").with_for_update())
    assert {result.applied for result in (await flushing).results} == {Applied.APPLIED}
    assert await raw.count(history) == 4
    assert await deadlocks.count(store) == 1


@SERVERS
async def test_an_accept_that_is_the_victim_of_a_deadlock_runs_again_as_a_whole(
    store: Storage, raw: Raw, barrier: Barrier, deadlocks: Deadlocks
) -> None:
    for name in "az":
        await store.flush([given.start(name)])
        await store.flush([given.park(name, 2, name)])
    async with raw.transaction() as user:
        await raw.survive(user)
        await user.execute(sa.select(instances.c.id).where(instances.c.id == "z").with_for_update())
        made = [given.event("ea", "a"), given.event("ez", "z")]
        accepting = await barrier.waiting(store.accept(given.batch("b", *made)))
        await user.execute(sa.select(instances.c.id).where(instances.c.id == "a").with_for_update())
    results = (await accepting).results
    assert [(one.verdict, one.seq, one.waits) for one in results] == [
        (Verdict.ACCEPTED, 1, 1),
        (Verdict.ACCEPTED, 2, 1),
    ]
    assert await raw.count(events) == 2
    assert {row.signals for row in await raw.rows(instances.select())} == {1}
    assert await deadlocks.count(store) == 1


@SERVERS
async def test_a_lock_that_is_not_given_in_time_is_asked_for_again_by_the_whole_transaction(
    another_store: Callable[..., Awaitable[Storage]], raw: Raw, deadlocks: Deadlocks
) -> None:
    """After InnoDB's lock wait timeout the rest of the transaction is still open: committed, it would be half."""
    store = await another_store("a", lease_us=4_000_000)
    await store.flush([given.start("first"), given.start("last")])
    async with raw.transaction() as user:
        await user.execute(sa.select(instances.c.id).where(instances.c.id == "last").with_for_update())
        turns = [given.start("born in the first try"), given.step("first", 2), given.step("last", 2)]
        flushing = asyncio.create_task(store.flush(turns))
        await eventually(lambda: deadlocks.again, timeout=20)
    assert {result.applied for result in (await flushing).results} == {Applied.APPLIED}
    assert await raw.count(history) == 5


@SERVERS
async def test_a_claim_takes_no_part_in_a_deadlock_for_it_waits_for_no_row(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.insert_instances([given.instance("held"), given.instance("free")])
    async with raw.transaction() as user:
        await user.execute(sa.select(instances.c.id).where(instances.c.id == "held").with_for_update())
        claimed = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
        assert [one.id for one in claimed] == ["free"]
    claimed = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
    assert [one.id for one in claimed] == ["held"]


async def test_two_releases_and_two_signals_of_the_same_instances_leave_no_one_asleep(
    store: Storage, other: Storage, raw: Raw, deadlocks: Deadlocks
) -> None:
    """Every instance parks on a wait whose event comes at that moment: each ends up runnable, or with its owner."""
    for number in range(ROUNDS):
        names = [f"{number}-{name}" for name in IDS]
        await store.flush([given.start(name) for name in names])
        parking = [given.park(name, 2, name) for name in names]
        made = [given.event(f"e-{name}", name) for name in names[::-1]]
        parked, _ = await asyncio.gather(store.flush(parking), other.accept(given.batch(f"b{number}", *made)))
        for turn, result in zip(parking, parked.results, strict=True):
            row = await store.get_instance(turn.instance_id)
            assert row is not None
            kept = result.applied is Applied.KEPT
            assert row.state == ("running" if kept else "runnable")
            assert turn.release is Release.PARK
    assert await deadlocks.count(store, other) == 0
