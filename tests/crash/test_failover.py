"""A worker that dies leaves all to others, and an instance that kills its workers does not do so for ever."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from edda.history.codec import decode_exception
from edda.storage.schema import instances
from tests.crash.shop import Shop
from tests.support.eventually import eventually


@pytest.mark.timeout(400)
async def test_worker_that_dies_with_a_thousand_instances_leaves_all_to_another(shop: Shop) -> None:
    gate = str(shop.hold)
    first = shop.start("crowd", gate=gate, slow=500, waiters=500)
    await first.line("all there", timeout=180)
    assert await shop.counts() == {"running": 500, "waiting": 500, "outbox": 0}
    first.kill()
    shop.hold.touch()

    second = shop.start("crowd", gate=gate, wake=500)
    await second.line("all there", timeout=180)
    await shop.all_done(1_000, timeout=180)
    owners = await shop.select(sa.select(instances.c.owner).where(instances.c.owner.is_not(None)))
    assert owners == []


async def test_instance_that_kills_its_workers_is_dead_lettered_with_the_reason_and_others_go_on(
    shop: Shop,
) -> None:
    for number in range(3):  # once more than max_recoveries
        worker = shop.start("poisoned", start=number == 0)
        assert worker.wait(timeout=30) == -9, worker.output
    survivor = await shop.start_ready("poisoned", start=False)

    async def is_given_up() -> bool:
        return (await shop.counts()).get("dead", 0) == 1

    await eventually(is_given_up, timeout=30, pause=0.1)
    [row] = await shop.select(sa.select(instances).where(instances.c.workflow == "poison"))
    reason = decode_exception(row.error)
    assert "died 3 times" in str(reason), reason
    assert row.owner is None
    assert survivor.returncode is None

    shop.hold.touch()
    await (shop.start("crowd", gate=str(shop.hold), wake=5)).line("all there")

    async def others_have_completed() -> bool:
        return await shop.counts() == {"completed": 5, "dead": 1, "outbox": 0}

    await eventually(others_have_completed, timeout=30, pause=0.1)
