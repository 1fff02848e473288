"""SIGSTOP past the lease: a worker that awakes finds itself dead, writes nothing, and goes on under a new name."""

from __future__ import annotations

import random

import httpx
import sqlalchemy as sa

from edda.storage.schema import history, instances, workers
from tests.crash.customers import Customers
from tests.crash.programs import port_of
from tests.crash.shop import Shop
from tests.support.eventually import eventually


async def test_worker_that_slept_past_its_lease_is_fenced_and_goes_on_with_a_new_id(shop: Shop) -> None:
    shop.start_sink()
    await shop.start_relay().line("^ready$")
    first = await shop.start_ready("worker", signal="SIGSTOP", fatal="body.weigh.1.before")
    port = port_of(shop.start("gateway"))
    customers = Customers(lambda: port, random.Random(1))
    customers.orders["shop/1"] = 101
    customers.orders["shop/2"] = 102
    async with httpx.AsyncClient(timeout=20) as client:
        await customers.send(client, customers.order("shop/1"))
        await customers.send(client, customers.payment("shop/1"))
        await first.line("SIGSTOP at body.weigh.1.before")
        [(old,)] = await shop.select(sa.select(workers.c.id).where(workers.c.app == "shop"))

        second = await shop.start_ready("worker")
        await shop.all_done(1)
        taken_over = await _history(shop)

        first.resume()
        await first.line("worker_declared_dead|ownership_lost")

        async def has_a_new_name() -> str | None:
            alive = sa.select(workers.c.id).where(workers.c.app == "shop", ~workers.c.dead)
            names = {row[0] for row in await shop.select(alive)}
            return next((name for name in names if f"-{first.pid}-" in name and name != old), None)

        name = await eventually(has_a_new_name, timeout=30, pause=0.1)
        assert name is not None
        # What it did in its sleep has changed nothing.
        assert await _history(shop) == taken_over
        assert await shop.faults({"shop/1": 101}) == []

        # And it works: there is nobody else now.
        second.kill()
        await customers.send(client, customers.order("shop/2"))

        async def is_its() -> bool:
            parked = await shop.select(sa.select(instances.c.state).where(instances.c.state == "waiting"))
            return len(parked) == 1

        await eventually(is_its, timeout=30, pause=0.1)
        await customers.send(client, customers.payment("shop/2"))
    await shop.all_done(2)
    assert await shop.faults(customers.orders) == []


async def _history(shop: Shop) -> list[object]:
    return [tuple(row) for row in await shop.select(sa.select(history).order_by(history.c.pos))]
