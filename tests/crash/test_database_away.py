"""A database that is down at the start, that ends, and that says nothing any more: waited for, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import threading
from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa

from tests.crash.customers import Customers
from tests.crash.programs import port_of
from tests.crash.proxies import Proxy, proxied
from tests.crash.shop import Shop
from tests.support.eventually import eventually

#: A file has no server that goes away; it can be locked, see below.
SERVERS = pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)


@pytest.fixture
async def proxy(shop: Shop) -> AsyncIterator[Proxy]:
    """All of the shop's processes come through it; it is down until the test says ``up``."""
    async with proxied(shop.database.url) as between:
        shop.url = between.url
        yield between


@SERVERS
async def test_database_that_is_down_at_the_start_is_waited_for(shop: Shop, proxy: Proxy) -> None:
    shop.start_sink()
    worker, relay, gateway = shop.start("worker"), shop.start_relay(), shop.start("gateway")
    port = port_of(gateway)
    customers = Customers(lambda: port, random.Random(1))
    customers.orders["shop/1"] = 101
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        # Tried again and again, each time said with its reason.
        for process in (worker, relay):
            for _ in range(3):
                await process.line("waiting_for_database")
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "EDDA201" in ready.json()["reason"]
        assert "edda:edda" not in ready.text
        refused = await customers.post(client, customers.order("shop/1"))
        assert refused.status_code == 503
        assert refused.json()["retryable"] is True
        assert "retry-after" in refused.headers

        await proxy.up()
        await worker.line("^ready$")
        await relay.line("^ready$")

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(is_ready, timeout=30, pause=0.1)
        await customers.send(client, customers.order("shop/1"))
        await customers.send(client, customers.payment("shop/1"))
    await shop.all_done(1)
    assert await shop.faults(customers.orders) == []


@SERVERS
@pytest.mark.parametrize("how", ["down", "frozen"])
async def test_database_that_goes_away_and_comes_back_loses_nothing(
    shop: Shop, proxy: Proxy, how: str
) -> None:
    await proxy.up()
    shop.start_sink()
    worker = await shop.start_ready("worker")
    relay = shop.start_relay()
    await relay.line("^ready$")
    gateway = shop.start("gateway", patience=1.0)
    port = port_of(gateway)
    customers = Customers(lambda: port, random.Random(1))
    buying = asyncio.create_task(customers.buy(0, 30, over=4, at_once=5))

    async def some_are_in() -> bool:
        counts = await shop.counts()
        return sum(counts.values()) - counts["outbox"] > 2

    await eventually(some_are_in, timeout=30, pause=0.05)
    if how == "down":
        await proxy.down()
    else:
        proxy.freeze()
    # Longer than every lease; the sender hears that it should try again.
    await eventually(lambda: customers.in_vain["503"] >= 2, timeout=30)
    async with httpx.AsyncClient(timeout=20) as client:
        ready = await client.get(f"http://127.0.0.1:{port}/readyz")
        assert ready.status_code == 503
        assert re.search("EDDA201|has not answered", ready.json()["reason"])
    await proxy.up()

    await buying
    await shop.all_done(30)
    assert await shop.faults(customers.orders) == []
    assert [process.returncode for process in (worker, relay, gateway)] == [None, None, None]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_sqlite_file_that_somebody_locks_for_seconds_loses_nothing(shop: Shop) -> None:
    shop.start_sink()
    await shop.start_ready("worker")
    await shop.start_relay().line("^ready$")
    gateway = shop.start("gateway")
    port = port_of(gateway)
    customers = Customers(lambda: port, random.Random(1))
    await customers.buy(0, 5, over=0.2)

    def lock_for_longer_than_a_lease(locked: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        connection = sqlite3.connect(str(sa.make_url(shop.database.url).database), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        loop.call_soon_threadsafe(locked.set)
        released.wait(30)
        connection.execute("ROLLBACK")
        connection.close()

    locked, released = asyncio.Event(), threading.Event()
    holding = asyncio.create_task(
        asyncio.to_thread(lock_for_longer_than_a_lease, locked, asyncio.get_running_loop())
    )
    await locked.wait()
    buying = asyncio.create_task(customers.buy(5, 10, over=0.2))
    # Whoever wanted to renew its lease meanwhile could not.
    clock = asyncio.get_running_loop()
    until = clock.time() + 4
    await eventually(lambda: clock.time() > until, timeout=10)
    released.set()
    await holding
    await buying
    await shop.all_done(15)
    assert await shop.faults(customers.orders) == []
