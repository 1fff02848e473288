"""One relay per destination publishes; one that lost its lease, or was stopped, settles nothing."""

import pytest

from edda.storage.contract import Storage
from edda.storage.rows import RelayOutcome
from edda.storage.schema import outbox, relay_leases
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

LEASE_US = 10_000_000


async def take(store: Storage, relay: str) -> list[int] | None:
    """The rows' ids; None: another relay leads."""
    taken = await store.outbox_take("default", relay, LEASE_US, 100, 1 << 20)
    return [row.id for row in taken.rows] if taken.held else None


async def given_rows(store: Storage, count: int) -> None:
    turn = given.start("order")
    turn.outbox = [given.message(f"m{number}") for number in range(count)]
    await store.flush([turn])


async def test_of_two_relays_that_take_at_once_one_leads(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await given_rows(store, 3)
    async with barrier.at(relay_leases, "INSERT"):
        first = await barrier.stopped(take(store, "one"))
        second = await barrier.waiting(take(other, "two"))
    told = [await first, await second]
    assert sorted(rows is None for rows in told) == [False, True]


async def test_of_two_relays_that_take_an_expired_lease_at_once_one_leads(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await given_rows(store, 3)
    assert await take(store, "gone") is not None
    store.clock_offset_us = other.clock_offset_us = 2 * LEASE_US
    async with barrier.at(relay_leases, "UPDATE"):
        first = await barrier.stopped(take(store, "one"))
        second = await barrier.waiting(take(other, "two"))
    assert await first == [1, 2, 3]
    assert await second is None


OUTCOMES = {
    "confirmed": RelayOutcome(confirmed=(1, 2)),
    "failed": RelayOutcome(failed=((1, 0, "refused"),)),
    "dead": RelayOutcome(dead=((1, "refused"),)),
}


@pytest.mark.parametrize("what", OUTCOMES)
async def test_a_relay_that_settles_after_its_lease_was_taken_writes_nothing(
    store: Storage, other: Storage, raw: Raw, what: str
) -> None:
    await given_rows(store, 2)
    assert await take(store, "stopped") == [1, 2]
    other.clock_offset_us = 2 * LEASE_US
    assert await take(other, "live") == [1, 2]
    before = await raw.rows(outbox.select().order_by(outbox.c.id))
    assert not await store.outbox_settle("default", "stopped", OUTCOMES[what])
    assert await raw.rows(outbox.select().order_by(outbox.c.id)) == before
    assert await take(store, "stopped") is None
    assert await other.outbox_settle("default", "live", RelayOutcome(confirmed=(1, 2)))
    assert await raw.count(outbox) == 0


async def test_a_relay_whose_lease_is_taken_while_it_settles_writes_all_or_nothing(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    """It waits for the row of the lease, and compares what is in it then."""
    await given_rows(store, 2)
    assert await take(store, "stopped") == [1, 2]
    other.clock_offset_us = 2 * LEASE_US
    async with barrier.at(relay_leases, "UPDATE"):
        taking = await barrier.stopped(take(other, "live"))
        settling = await barrier.waiting(
            store.outbox_settle("default", "stopped", RelayOutcome(confirmed=(1, 2)))
        )
    assert await taking == [1, 2]
    assert not await settling
    assert await raw.count(outbox) == 2


async def test_rows_that_are_committed_late_are_taken_though_later_ones_have_gone(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    """Numbers are given at the insert: a relay that followed them by a cursor would never see the late one."""
    await other.flush([given.start("late", owner="b"), given.start("early", owner="b")])
    slow = given.step("late", 2, owner="b")
    slow.outbox.append(given.message("late"))
    fast = given.step("early", 2, owner="b")
    fast.outbox.append(given.message("early"))
    async with barrier.at(outbox, "INSERT", "NEW.event_id = 'late'"):
        flushing = await barrier.stopped(other.flush([slow]))
        await other.flush([fast])
        taken = await take(store, "relay")
        assert taken is not None
        assert await store.outbox_settle("default", "relay", RelayOutcome(confirmed=tuple(taken)))
    await flushing
    rest = await take(store, "relay")
    assert rest is not None
    assert len(taken) + len(rest) == 2
    assert await store.outbox_settle("default", "relay", RelayOutcome(confirmed=tuple(rest)))
    assert await raw.count(outbox) == 0
