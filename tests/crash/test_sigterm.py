"""SIGTERM: what runs comes to its end, and everything else is another worker's at once, not when a lease runs out."""

from __future__ import annotations

import sqlalchemy as sa

from edda.storage.schema import instances, relay_leases, workers
from tests.crash import workflows
from tests.crash.shop import Shop
from tests.support.eventually import eventually

#: So long that nothing in these tests waits for its end.
LEASE = 600


async def test_terminated_worker_ends_its_activity_and_another_goes_on_at_once(shop: Shop) -> None:
    first = await shop.start_ready("slow_worker", lease=LEASE, orders=1, gate=str(shop.hold))
    await first.line("begins slow/0")
    second = await shop.start_ready("slow_worker", lease=LEASE, orders=0, gate=str(shop.hold))

    first.terminate()
    await first.line("stopping")
    shop.hold.touch()  # only now can the activity end
    assert first.wait() == 0

    await shop.all_done(1)
    assert first.output.count("ends slow/0") == 1
    assert workflows.noted(shop.diary, "slow", "slow/0") == 1, "an activity was cut off within the deadline"
    assert "begins after slow/0" in second.output
    assert "instances_requeued" not in second.output


async def test_terminated_worker_leaves_what_cannot_end_in_time_to_another_at_once(shop: Shop) -> None:
    first = await shop.start_ready(
        "slow_worker", lease=LEASE, orders=3, gate=str(shop.hold), shutdown_timeout=0.5
    )
    for number in range(3):
        await first.line(f"begins slow/{number}")
    second = await shop.start_ready("slow_worker", lease=LEASE, orders=0, gate=str(shop.hold))

    first.terminate()
    assert first.wait() == 0
    for number in range(3):
        await second.line(rf"begins slow/{number}")
    shop.hold.touch()

    await shop.all_done(3)
    assert "ends" not in first.output
    # Nobody died, so nobody is on the way to being dead-lettered.
    recoveries = await shop.select(sa.select(instances.c.recoveries))
    assert [row[0] for row in recoveries] == [0, 0, 0]


async def test_terminated_worker_leaves_no_owner_and_no_lease_behind(shop: Shop) -> None:
    shop.start_sink()
    relay = shop.start_relay()
    await relay.line("^ready$")
    worker = await shop.start_ready("slow_worker", lease=LEASE, orders=20, gate=str(shop.hold))
    await worker.line("begins slow/19")
    worker.terminate()
    relay.terminate()
    shop.hold.touch()
    assert (worker.wait(), relay.wait()) == (0, 0)

    async def nothing_is_held() -> bool:
        return await _held(shop) == []

    await eventually(nothing_is_held, timeout=5)


async def _held(shop: Shop) -> list[object]:
    return [
        *await shop.select(sa.select(instances.c.id).where(instances.c.owner.is_not(None))),
        *await shop.select(sa.select(workers.c.id).where(~workers.c.dead)),
        *await shop.select(sa.select(relay_leases)),
    ]
