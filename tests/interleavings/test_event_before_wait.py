"""An event that is accepted before, while or after its wait is registered is received, and received once."""

import pytest
import sqlalchemy as sa

from edda.app import EddaApp
from edda.storage.contract import Storage
from edda.storage.rows import LEFT_AFTER_US, Applied, EventRow, Release, State, Turn, Verdict
from edda.storage.schema import event_keys, instances, unmarked, waits
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import spawn

#: How a wait comes to be, with ``seq`` 2 and key "key"; with a deadline or without.
REGISTRATIONS = {
    "keep": lambda: given.step("order", 2, waits=[given.wait(2, "key")]),
    "park": lambda: given.park("order", 2, "key"),
    "park with deadline": lambda: given.park("order", 2, "key", delay_us=given.LEASE_US),
}
registrations = pytest.mark.parametrize("how", REGISTRATIONS)


async def due_event(store: Storage, seq: int = 2) -> EventRow | None:
    """The event that the wait with this number gets; None while it is not due."""
    loaded = (await store.load(["order"], history=False))["order"]
    (wait,) = [wait for wait in loaded.waits if wait.seq == seq]
    assert wait.due == (wait.event is not None)
    return wait.event


async def state(store: Storage) -> tuple[State, str | None]:
    row = await store.get_instance("order")
    assert row is not None
    return row.state, row.owner


@registrations
async def test_event_accepted_before_its_wait_wakes_it_when_registered(store: Storage, how: str) -> None:
    await store.flush([given.start("order")])
    accepted = await store.accept(given.batch("b", given.event("e", "key")))
    assert accepted.results[0].verdict is Verdict.UNMATCHED
    assert (await store.flush([REGISTRATIONS[how]()])).results[0].applied is Applied.KEPT
    event = await due_event(store)
    assert event is not None
    assert event.event_id == "e"
    assert await state(store) == (State.RUNNING, "a")


@registrations
async def test_event_that_commits_while_the_registration_waits_for_the_accept_lock_is_seen(
    store: Storage, other: Storage, barrier: Barrier, how: str
) -> None:
    await store.flush([given.start("order")])
    async with barrier.at(event_keys, "INSERT"):
        accepting = await barrier.stopped(other.accept(given.batch("b", given.event("e", "key"))))
        registering = await barrier.waiting(store.flush([REGISTRATIONS[how]()]))
    assert (await accepting).results[0].waits == 0
    assert (await registering).results[0].applied is Applied.KEPT
    event = await due_event(store)
    assert event is not None
    assert event.event_id == "e"
    assert await state(store) == (State.RUNNING, "a")


@registrations
async def test_registration_that_commits_while_accept_waits_for_the_lock_is_woken(
    store: Storage, other: Storage, barrier: Barrier, how: str
) -> None:
    await store.flush([given.start("order")])
    async with barrier.at(waits, "INSERT"):
        registering = await barrier.stopped(store.flush([REGISTRATIONS[how]()]))
        accepting = await barrier.waiting(other.accept(given.batch("b", given.event("e", "key"))))
    (registered,) = (await registering).results
    assert registered.applied is Applied.APPLIED
    (accepted,) = (await accepting).results
    assert (accepted.verdict, accepted.waits) == (Verdict.ACCEPTED, 1)
    assert await state(store) == ((State.RUNNING, "a") if how == "keep" else (State.RUNNABLE, None))
    event = await due_event(store)
    assert event is not None
    assert event.event_id == "e"
    row = await store.get_instance("order")
    assert row is not None
    assert row.signals == registered.signals + 1


async def test_event_that_commits_while_an_instance_parks_on_an_older_wait_keeps_it(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """The turn that parks names no wait: what it parks on was registered turns ago."""
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.wait(2, "key")])])
    async with barrier.at(event_keys, "INSERT"):
        accepting = await barrier.stopped(other.accept(given.batch("b", given.event("e", "key"))))
        parking = await barrier.waiting(store.flush([given.step("order", 3, release=Release.PARK)]))
    assert (await accepting).results[0].waits == 1
    assert (await parking).results[0].applied is Applied.KEPT
    assert await due_event(store) is not None
    assert await state(store) == (State.RUNNING, "a")


async def test_accept_does_not_wait_for_a_turn_that_registers_nothing(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """And a step does not wait for accept: only registrations and events meet at the accept lock."""
    await store.flush([given.start("order"), given.start("parked")])
    await store.flush([given.park("parked", 2, "key")])
    async with barrier.at(event_keys, "INSERT"):
        accepting = await barrier.stopped(other.accept(given.batch("b", given.event("e", "key"))))
        applied = (await store.flush([given.step("order", 2)])).results[0].applied
        assert applied is Applied.APPLIED
        assert accepting.done() != barrier.stops
    await accepting


async def test_a_wait_that_is_replaced_finds_the_event_behind_the_one_received(
    store: Storage, other: Storage
) -> None:
    """The loop ``while True: await wait_event(...)``: the next wait begins where the last event was."""
    await store.flush([given.start("order")])
    await other.accept(given.batch("b", *(given.event(f"e{n}", "key") for n in range(3))))
    cursor, seen = 0, []
    for seq in range(2, 5):
        turn = given.step("order", seq, waits=[given.wait(seq, "key", cursor=cursor)])
        turn.drop_waits = [seq - 1]
        assert (await store.flush([turn])).results[0].applied is Applied.KEPT
        event = await due_event(store, seq)
        assert event is not None
        seen.append(event.event_id)
        cursor = event.seq
    assert seen == ["e0", "e1", "e2"]
    last = given.park("order", 5, "key", cursor=cursor)
    last.drop_waits = [4]
    assert (await store.flush([last])).results[0].applied is Applied.APPLIED


async def test_the_starting_event_is_not_received_again_by_the_first_wait(
    store: Storage, other: Storage
) -> None:
    starts = [given.instance("order")]
    accepted = await other.accept(given.batch("b", given.event("e", "key", starts=starts)))
    assert (accepted.results[0].verdict, accepted.results[0].starts) == (Verdict.ACCEPTED, 1)
    (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
    assert claimed.start_event == accepted.results[0].seq
    wait = given.wait(1, "key", skip=claimed.start_event)
    turn = given.step("order", 1, fence=claimed.fence, waits=[wait], release=Release.PARK)
    assert (await store.flush([turn])).results[0].applied is Applied.APPLIED
    await other.accept(given.batch("b2", given.event("e2", "key")))
    assert await state(store) == (State.RUNNABLE, None)
    event = await due_event(store, 1)
    assert event is not None
    assert event.event_id == "e2"


@pytest.mark.parametrize("first", ["event", "timeout"])
async def test_event_and_deadline_that_fire_together_leave_both_facts_to_the_claim(
    store: Storage, other: Storage, first: str
) -> None:
    """Who marks the wait due does not choose: whoever is faster, the claim finds event, accept time and deadline."""
    await store.flush([given.start("order")])
    await store.flush([given.park("order", 2, "key", delay_us=1_000_000)])
    if first == "timeout":
        other.clock_offset_us = 2_000_000
        assert (await other.fire_timers())[1] == 1
        other.clock_offset_us = 0
        await other.accept(given.batch("b", given.event("e", "key")))
    else:
        await other.accept(given.batch("b", given.event("e", "key")))
        other.clock_offset_us = 2_000_000
        assert (await other.fire_timers())[1] == 0
    store.clock_offset_us = 2_000_000
    (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
    assert claimed.id == "order"
    loaded = (await store.load(["order"]))["order"]
    (wait,) = loaded.waits
    assert wait.due
    assert wait.event is not None
    assert wait.deadline_us is not None
    assert wait.event.accepted_at < wait.deadline_us


async def test_an_addressed_event_wakes_its_chain_only_whoever_registers_first(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order"), given.start("stranger")])
    async with barrier.at(event_keys, "INSERT"):
        event = given.event("e", "key", addressee="order")
        accepting = await barrier.stopped(other.accept(given.batch("b", event)))
        turns: list[Turn] = [given.park("order", 2, "key"), given.park("stranger", 2, "key")]
        parking = await barrier.waiting(store.flush(turns))
    await accepting
    applied = [result.applied for result in (await parking).results]
    assert applied == [Applied.KEPT, Applied.APPLIED]
    stranger = (await store.load(["stranger"]))["stranger"].waits[0]
    assert not stranger.due


async def test_event_before_wait_is_not_lost_when_who_accepted_it_dies_with_most_of_its_waits_unmarked(
    store: Storage, database: Database, raw: Raw
) -> None:
    """More waits than accept marks; the process is gone before it can mark the others. A worker of any app does it."""
    await given.park_many(store, 1_500)
    with spawn("tests.interleavings.programs:accept_and_die", database.url, "e", "key") as process:
        await process.line("^accepted accepted 1$")
        process.kill()
    asleep = sa.select(sa.func.count()).where(instances.c.state == State.WAITING)
    assert await raw.scalar(asleep) == 500

    async def all_awake() -> bool:
        return not await raw.scalar(asleep)

    housekeeper = EddaApp("somebody else's", database.url, workflows=[], lease_seconds=60)
    housekeeper.store.clock_offset_us = LEFT_AFTER_US
    async with housekeeper:
        await eventually(all_awake)
    assert await raw.count(unmarked) == 0
    due = (await raw.rows(sa.select(sa.func.count()).where(waits.c.due)))[0][0]
    assert due == 1_500
