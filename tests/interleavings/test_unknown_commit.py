"""A transaction whose answer was lost is sent again as it is, and changes nothing twice."""

from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.rows import (
    Applied,
    NewDeadLetter,
    NewInstance,
    Release,
    State,
    Trigger,
    Turn,
    Verdict,
)
from edda.storage.schema import (
    dead_letters,
    events,
    history,
    instances,
    outbox,
    triggers,
    waits,
    workers,
)
from tests.interleavings import given
from tests.interleavings.lost import Lossy
from tests.interleavings.raw import Raw


@pytest.fixture
async def other(another_store: Callable[..., Awaitable[Storage]]) -> Storage:
    """The store of worker "b", whose network loses nothing."""
    return await another_store("b")


def has(
    raw: Raw, statement: sa.Select[tuple[int]] | sa.Select[tuple[object]]
) -> Callable[[], Awaitable[bool]]:
    """Whether a row is there."""

    async def asked() -> bool:
        return bool(await raw.rows(statement))

    return asked


def record_2(raw: Raw) -> Callable[[], Awaitable[bool]]:
    return has(raw, sa.select(history.c.seq).where(history.c.seq == 2))


async def applied(store: Storage, turn: Turn) -> Applied:
    return (await store.flush([turn])).results[0].applied


async def state(store: Storage) -> tuple[State, str | None, int]:
    row = await store.get_instance("order")
    assert row is not None
    return row.state, row.owner, row.fence


# ---------------------------------------------------------------------------------------------- flush


async def test_a_step_that_is_sent_again_is_written_once(lossy: Lossy, raw: Raw) -> None:
    await lossy.store.flush([given.start("order")])
    turn = given.step("order", 2, 3)
    turn.outbox.append(given.message("m"))
    turn.children.append(given.instance("child"))
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await raw.count(history) == 3
    assert await raw.count(outbox) == 1
    assert await raw.count(instances) == 2


async def test_a_step_that_never_reached_the_database_is_written_when_sent_again(
    lossy: Lossy, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order")])
    turn = given.step("order", 2)
    turn.outbox.append(given.message("m"))
    await lossy.lose_request(lambda: lossy.store.flush([turn]))
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await raw.count(history) == 2
    assert await raw.count(outbox) == 1


async def test_a_start_that_is_sent_again_did_not_find_its_id_taken(lossy: Lossy, raw: Raw) -> None:
    turn = given.start("order", live_key="key of the run")
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), has(raw, sa.select(instances.c.id)))
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await state(lossy.store) == (State.RUNNING, "a", 1)
    assert await raw.count(history) == 1


async def test_a_start_without_records_that_is_sent_again_did_not_find_its_id_taken(
    lossy: Lossy, raw: Raw
) -> None:
    turn = given.start("order")
    turn.records.clear()
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), has(raw, sa.select(instances.c.id)))
    assert await applied(lossy.store, turn) is Applied.APPLIED


async def test_a_shared_flush_that_is_sent_again_is_written_once_for_each_of_its_turns(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order"), given.start("parking"), given.start("ending")])
    turns = [
        given.step("order", 2),
        given.park("parking", 2, "key"),
        given.step("ending", 2, release=Release.END),
        given.start("new"),
        given.step("not ours", 2),
    ]
    await lossy.lose_answer(lambda: lossy.store.flush(turns), record_2(raw))
    await other.accept(given.batch("b", given.event("e", "key")))
    results = (await lossy.store.flush(turns)).results
    assert [result.applied for result in results] == [Applied.APPLIED] * 4 + [Applied.LOST]
    assert await raw.count(history) == 7


async def test_a_wait_that_fired_in_between_does_not_come_back_when_its_park_is_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order")])
    turn = given.park("order", 2, "key")
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    await other.accept(given.batch("b", given.event("e", "key")))
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await state(lossy.store) == (State.RUNNABLE, None, 1)
    (wait,) = (await lossy.store.load(["order"]))["order"].waits
    assert wait.event is not None


async def test_a_wait_that_was_consumed_in_between_does_not_come_back_when_its_park_is_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    """Else the second event would be eaten by a ghost."""
    await lossy.store.flush([given.start("order")])
    turn = given.park("order", 2, "key")
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    await other.accept(given.batch("b", given.event("e", "key")))
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 1)
    received = given.step("order", 3, owner="b", fence=claimed.fence, signals=claimed.signals)
    received.drop_waits = [2]
    assert await applied(other, received) is Applied.APPLIED
    assert await applied(lossy.store, turn) is Applied.LOST
    assert await raw.count(waits) == 0
    assert await state(other) == (State.RUNNING, "b", claimed.fence)


async def test_a_wait_that_fired_while_its_owner_stayed_is_still_due_when_its_turn_is_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order")])
    turn = given.step("order", 2, waits=[given.wait(2, "key")])
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    await other.accept(given.batch("b", given.event("e", "key")))
    (result,) = (await lossy.store.flush([turn])).results
    # The owner has seen signals 0: whatever the verdict, this makes it load.
    assert result.signals == 1
    assert result.applied in {Applied.APPLIED, Applied.KEPT}
    (wait,) = (await lossy.store.load(["order"]))["order"].waits
    assert wait.event is not None


async def test_a_timer_that_fired_in_between_is_still_due_when_its_park_is_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order")])
    turn = given.step("order", 2, waits=[given.timer(2, 50_000_000)], release=Release.PARK)
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    other.clock_offset_us = 60_000_000
    assert (await other.fire_timers())[1] == 1
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await state(lossy.store) == (State.RUNNABLE, None, 1)
    assert (await other.fire_timers())[1] == 0


async def test_a_park_that_was_kept_is_still_kept_when_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order")])
    await other.accept(given.batch("b", given.event("e", "key")))
    turn = given.park("order", 2, "key")
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    assert await applied(lossy.store, turn) is Applied.KEPT
    assert await state(lossy.store) == (State.RUNNING, "a", 1)
    assert (await lossy.store.load(["order"]))["order"].waits[0].event is not None


async def test_an_outcome_that_is_sent_again_was_not_lost_to_another_owner(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order", live_key="k")])
    turn = given.step("order", 2, release=Release.END)
    turn.successor = given.instance("next", live_key="k")
    turn.outbox.append(given.message("m"))
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
    assert claimed.id == "next"
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await state(lossy.store) == (State.COMPLETED, None, 1)
    assert await raw.count(outbox) == 1
    row = await lossy.store.get_instance("next")
    assert row is not None
    assert (row.state, row.owner, row.fence) == (State.RUNNING, "b", 1)


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_yield_that_is_sent_again_does_not_take_the_instance_from_its_next_owner(
    lossy: Lossy, other: Storage, raw: Raw, claimed: bool
) -> None:
    await lossy.store.flush([given.start("order")])
    turn = given.step("order", 2, release=Release.YIELD)
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), record_2(raw))
    if claimed:
        await other.claim(given.APP, [given.WORKFLOW], "b", 1)
    assert await applied(lossy.store, turn) is (Applied.LOST if claimed else Applied.APPLIED)
    expected = (State.RUNNING, "b", 2) if claimed else (State.RUNNABLE, None, 1)
    assert await state(lossy.store) == expected


async def test_a_release_without_records_that_is_sent_again_was_applied(lossy: Lossy, raw: Raw) -> None:
    await lossy.store.flush([given.start("order")])
    await lossy.store.flush([given.step("order", 2, waits=[given.wait(2, "key")])])
    turn = given.step("order", release=Release.PARK)
    parked = has(raw, sa.select(instances.c.id).where(instances.c.state == State.WAITING))
    await lossy.lose_answer(lambda: lossy.store.flush([turn]), parked)
    assert await applied(lossy.store, turn) is Applied.APPLIED
    assert await state(lossy.store) == (State.WAITING, None, 1)


# ---------------------------------------------------------------------------------------------- accept


async def test_a_batch_that_is_sent_again_is_accepted_and_there_once(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await lossy.store.flush([given.start("order")])
    await lossy.store.flush([given.park("order", 2, "key")])
    batch = given.batch(
        "b",
        given.event("e", "key", position=0),
        given.event("starts", starts=[given.instance("started", live_key="k")], position=0),
        given.event("nobody's", position=0),
        poison=[NewDeadLetter("kafka:payments/0@3", b"?", b"[]", "no JSON", position=0)],
        positions=[given.advance(0, 4)],
    )
    committed = has(raw, sa.select(events.c.seq))
    await lossy.lose_answer(lambda: lossy.store.accept(batch), committed)
    again = await lossy.store.accept(batch)
    assert [result.verdict for result in again.results] == [Verdict.ACCEPTED] * 3
    assert [result.seq for result in again.results] == [1, 2, 3]
    assert again.stale == {}
    assert await raw.count(events) == 3
    assert await raw.count(dead_letters) == 1
    assert await raw.count(instances) == 2
    row = await lossy.store.get_instance("order")
    assert row is not None
    assert (row.state, row.signals) == (State.RUNNABLE, 1)
    other_consumer = given.batch("c", given.event("late", position=0), positions=[given.advance(0, 4)])
    assert (await other.accept(other_consumer)).stale == {0: 4}


async def test_poison_that_is_sent_again_is_buried_once(lossy: Lossy, raw: Raw) -> None:
    """No event of the batch tells that it was committed, nor a position."""
    letters = [NewDeadLetter("http", b"?", b"[]", "no JSON") for _ in range(2)]
    batch = given.batch("b", poison=letters)
    await lossy.lose_answer(lambda: lossy.store.accept(batch), has(raw, sa.select(dead_letters.c.id)))
    await lossy.store.accept(batch)
    assert await raw.count(dead_letters) == 2


async def test_poison_with_a_position_that_is_sent_again_is_buried_once_and_is_not_stale(
    lossy: Lossy, raw: Raw
) -> None:
    letter = NewDeadLetter("kafka:payments/0@3", b"?", b"[]", "no JSON", position=0)
    batch = given.batch("b", poison=[letter], positions=[given.advance(3, 4)])
    await lossy.lose_answer(lambda: lossy.store.accept(batch), has(raw, sa.select(dead_letters.c.id)))
    assert (await lossy.store.accept(batch)).stale == {}
    assert await raw.count(dead_letters) == 1


async def test_whom_a_batch_has_woken_is_told_of_it_when_it_is_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    """The hints go out after the commit: those of the first try never did."""
    await other.flush([given.start("order", owner="b")])
    await other.flush([given.park("order", 2, "key", owner="b")])
    batch = given.batch("b", given.event("e", "key"))
    await lossy.lose_answer(lambda: lossy.store.accept(batch), has(raw, sa.select(events.c.seq)))
    assert given.APP in (await lossy.store.accept(batch)).woken_apps


async def test_waits_left_unmarked_are_marked_by_the_process_whose_batch_is_sent_again(
    lossy: Lossy, raw: Raw
) -> None:
    await given.park_many(lossy.store, 1_100)
    batch = given.batch("b", given.event("e", "key"))
    await lossy.lose_answer(lambda: lossy.store.accept(batch), has(raw, sa.select(events.c.seq)))
    again = await lossy.store.accept(batch)
    assert again.more_hashes == (given.digest("key"),)
    assert (await lossy.store.mark_due(again.more_hashes))[1] is False
    assert {row.state for row in await raw.rows(instances.select())} == {State.RUNNABLE}
    assert (await lossy.store.accept(batch)).more_hashes == ()


async def test_a_batch_that_never_reached_the_database_is_accepted_when_sent_again(
    lossy: Lossy, raw: Raw
) -> None:
    batch = given.batch("b", given.event("e", position=0), positions=[given.advance(0, 1)])
    await lossy.lose_request(lambda: lossy.store.accept(batch))
    result = await lossy.store.accept(batch)
    assert result.results[0].verdict is Verdict.UNMATCHED
    assert result.stale == {}
    assert await raw.count(events) == 1


async def test_a_batch_sent_again_after_another_gateway_had_it_too_is_still_its_own(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    batch = given.batch("ours", given.event("e"))
    await lossy.lose_answer(lambda: lossy.store.accept(batch), has(raw, sa.select(events.c.seq)))
    theirs = await other.accept(given.batch("theirs", given.event("e"), given.event("f")))
    assert [result.verdict for result in theirs.results] == [Verdict.DUPLICATE, Verdict.UNMATCHED]
    assert (await lossy.store.accept(batch)).results[0].verdict is Verdict.ACCEPTED
    assert await raw.count(events) == 2


async def test_an_event_received_and_gone_on_is_not_delivered_again_when_its_batch_is_sent_again(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await other.flush([given.start("order", owner="b")])
    await other.flush([given.park("order", 2, "key", owner="b")])
    batch = given.batch("b", given.event("e", "key"))
    await lossy.lose_answer(lambda: lossy.store.accept(batch), has(raw, sa.select(events.c.seq)))
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 1)
    (wait,) = (await other.load(["order"]))["order"].waits
    assert wait.event is not None
    turn = given.park(
        "order", 3, "key", owner="b", fence=claimed.fence, signals=claimed.signals, cursor=wait.event.seq
    )
    turn.drop_waits = [2]
    assert await applied(other, turn) is Applied.APPLIED
    await lossy.store.accept(batch)
    row = await other.get_instance("order")
    assert row is not None
    assert (row.state, row.signals) == (State.WAITING, claimed.signals)


# ---------------------------------------------------------------------------------------------- the rest


async def test_a_claim_whose_answer_was_lost_is_found_again(lossy: Lossy, other: Storage, raw: Raw) -> None:
    await other.insert_instances([given.instance("order"), given.instance("second")])
    owned = has(raw, sa.select(instances.c.id).where(instances.c.owner == "a"))
    await lossy.lose_answer(lambda: lossy.store.claim(given.APP, [given.WORKFLOW], "a", 1), owned)
    (orphan,) = await lossy.store.owned("a")
    assert orphan.fence == 1
    (next_one,) = await lossy.store.claim(given.APP, [given.WORKFLOW], "a", 10)
    assert {orphan.id, next_one.id} == {"order", "second"}
    turn = given.step(orphan.id, 1, fence=orphan.fence)
    assert await applied(lossy.store, turn) is Applied.APPLIED


async def test_a_worker_that_registers_again_is_registered(lossy: Lossy, raw: Raw) -> None:
    there = has(raw, sa.select(workers.c.id).where(workers.c.id == "a2"))

    async def register() -> None:
        await lossy.store.register_worker("a2", given.APP, given.LEASE_US)

    await lossy.lose_answer(register, there)
    await register()
    assert await there()


async def test_a_requeue_that_is_sent_again_counts_one_recovery(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await other.flush([given.start("order", owner="b")])
    lossy.store.clock_offset_us = 2 * given.LEASE_US
    given_back = has(raw, sa.select(instances.c.id).where(instances.c.state == State.RUNNABLE))
    await lossy.lose_answer(lossy.store.requeue_expired, given_back)
    assert (await lossy.store.requeue_expired())[1] == 0
    row = await lossy.store.get_instance("order")
    assert row is not None
    assert (row.fence, row.recoveries) == (2, 1)


async def test_timers_that_are_fired_again_signal_once(lossy: Lossy, raw: Raw) -> None:
    await lossy.store.flush([given.start("order")])
    parking = given.step("order", 2, waits=[given.timer(2, 1_000)], release=Release.PARK)
    assert await applied(lossy.store, parking) is Applied.APPLIED
    lossy.store.clock_offset_us = 1_000_000
    fired = has(raw, sa.select(waits.c.seq).where(waits.c.due))
    await lossy.lose_answer(lossy.store.fire_timers, fired)
    assert (await lossy.store.fire_timers())[1] == 0
    row = await lossy.store.get_instance("order")
    assert row is not None
    assert row.signals == 1


async def test_instances_and_declarations_that_are_sent_again_are_there_once(lossy: Lossy, raw: Raw) -> None:
    new = [NewInstance(name, given.APP, given.WORKFLOW, b"{}") for name in ("x", "y")]
    await lossy.lose_answer(lambda: lossy.store.insert_instances(new), has(raw, sa.select(instances.c.id)))
    await lossy.store.insert_instances(new)
    assert await raw.count(instances) == 2

    declared = [Trigger(given.APP, given.WORKFLOW, "paid")]
    await lossy.lose_answer(
        lambda: lossy.store.declare_triggers(declared), has(raw, sa.select(triggers.c.id))
    )
    version = (await lossy.store.routing()).version
    await lossy.store.declare_triggers(declared)
    assert (await lossy.store.routing()).version == version
    assert await raw.count(triggers) == 1


async def test_a_shape_that_is_registered_again_is_the_same_shape(
    lossy: Lossy, other: Storage, raw: Raw
) -> None:
    await other.accept(given.batch("b", given.event("e")))

    async def registered() -> bool:
        return bool((await other.routing()).shapes)

    await lossy.lose_answer(lambda: lossy.store.register_shape("paid", ("data.id",)), registered)
    shape = await lossy.store.register_shape("paid", ("data.id",))
    assert (await other.routing()).shapes == (shape,)
    assert (shape.ready, shape.backfill_until) == (False, 1)
