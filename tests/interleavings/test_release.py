"""A release is conditional on the signals that the owner has seen: news keep the instance with its owner."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from edda.storage.contract import Storage
from edda.storage.rows import Applied, Release, State, Turn
from edda.storage.schema import history, instances, waits
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

RELEASES: dict[str, Callable[[], Turn]] = {
    "park": lambda: given.step("order", 3, waits=[given.timer(3, given.LEASE_US)], release=Release.PARK),
    "end": lambda: given.step("order", 3, release=Release.END),
}
releases = pytest.mark.parametrize("release", RELEASES)


async def given_an_owned_wait(store: Storage) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.wait(2, "key")])])


@releases
async def test_a_release_with_signals_of_before_the_event_keeps_the_instance(
    store: Storage, other: Storage, release: str
) -> None:
    await given_an_owned_wait(store)
    await other.accept(given.batch("b", given.event("e", "key")))
    (result,) = (await store.flush([RELEASES[release]()])).results
    assert (result.applied, result.signals) == (Applied.KEPT, 1)
    row = await store.get_instance("order")
    assert row is not None
    assert (row.state, row.owner, row.output) == (State.RUNNING, "a", None)
    loaded = (await store.load(["order"]))["order"]
    assert [record.seq for record in loaded.history] == [1, 2, 3]
    assert loaded.signals == 1
    assert loaded.waits[0].event is not None
    # What was written counts; only the release is still to come, with what the owner knows now.
    again = replace(RELEASES[release](), records=[], waits=[], drop_waits=[2], signals=1)
    (result,) = (await store.flush([again])).results
    assert result.applied is Applied.APPLIED


@releases
async def test_a_signal_that_commits_while_the_release_waits_for_the_row_keeps_the_instance(
    store: Storage, other: Storage, barrier: Barrier, release: str
) -> None:
    await given_an_owned_wait(store)
    async with barrier.at(instances, "UPDATE", "NEW.signals = 1"):
        accepting = await barrier.stopped(other.accept(given.batch("b", given.event("e", "key"))))
        releasing = await barrier.waiting(store.flush([RELEASES[release]()]))
    await accepting
    (result,) = (await releasing).results
    assert (result.applied, result.signals) == (Applied.KEPT, 1)
    row = await store.get_instance("order")
    assert row is not None
    assert (row.state, row.owner) == (State.RUNNING, "a")


async def test_a_timer_that_fires_while_the_release_waits_for_the_row_keeps_the_instance(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.timer(2, 1)])])
    other.clock_offset_us = 1_000_000
    async with barrier.at(instances, "UPDATE", "NEW.signals = 1"):
        firing = await barrier.stopped(other.fire_timers())
        parking = await barrier.waiting(store.flush([given.step("order", 3, release=Release.PARK)]))
    assert (await firing)[1] == 1
    assert (await parking).results[0].applied is Applied.KEPT


@pytest.mark.parametrize("release", ["park", "end"])
async def test_what_fires_while_the_release_is_being_committed_is_not_lost(
    store: Storage, other: Storage, barrier: Barrier, release: str
) -> None:
    """The other way round: the release is first, and whoever signals finds what it has left."""
    await given_an_owned_wait(store)
    async with barrier.at(instances, "UPDATE", "NEW.owner IS NULL"):
        turn = given.step("order", 3, release=Release.PARK if release == "park" else Release.END)
        releasing = await barrier.stopped(store.flush([turn]))
        accepting = await barrier.waiting(other.accept(given.batch("b", given.event("e", "key"))))
    assert (await releasing).results[0].applied is Applied.APPLIED
    await accepting
    row = await store.get_instance("order")
    assert row is not None
    assert row.state is (State.RUNNABLE if release == "park" else State.COMPLETED)
    assert row.owner is None


async def test_an_ended_instance_is_woken_by_nothing_that_was_on_its_way(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    """Accept has matched the wait already and waits for the instance's row; then the instance ends."""
    await given_an_owned_wait(store)
    async with barrier.at(instances, "UPDATE", "NEW.state = 'completed'"):
        ending = await barrier.stopped(store.flush([given.step("order", 3, release=Release.END)]))
        accepting = await barrier.waiting(other.accept(given.batch("b", given.event("e", "key"))))
    assert (await ending).results[0].applied is Applied.APPLIED
    await accepting
    row = await store.get_instance("order")
    assert row is not None
    assert (row.state, row.owner) == (State.COMPLETED, None)
    assert await raw.count(waits) == 0
    assert await store.claim(given.APP, [given.WORKFLOW], "a", 1) == []


async def test_a_yield_is_unconditional_and_keeps_what_is_due(store: Storage, other: Storage) -> None:
    await given_an_owned_wait(store)
    await other.accept(given.batch("b", given.event("e", "key")))
    (result,) = (await store.flush([given.step("order", 3, release=Release.YIELD)])).results
    assert result.applied is Applied.APPLIED
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 1)
    assert (claimed.fence, claimed.signals) == (2, 1)
    assert (await other.load(["order"]))["order"].waits[0].event is not None


async def test_a_pause_is_unconditional_and_keeps_its_waits_and_its_live_key(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.flush([given.start("order", live_key="key of the run")])
    await store.flush([given.step("order", 2, waits=[given.wait(2, "key")])])
    await other.accept(given.batch("b", given.event("e", "key")))
    pause = Turn("order", "a", 1, 0, release=Release.END, end_state=State.PAUSED, error=b'"stale code"')
    assert (await store.flush([pause])).results[0].applied is Applied.APPLIED
    row = await store.get_instance("order")
    assert row is not None
    assert (row.state, row.owner) == (State.PAUSED, None)
    assert await raw.count(waits) == 1
    assert await raw.scalar(instances.select().with_only_columns(instances.c.live_key)) is not None
    assert await store.claim(given.APP, [given.WORKFLOW], "a", 1) == []
    assert await raw.count(history) == 2
