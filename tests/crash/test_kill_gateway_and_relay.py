"""kill -9 at the two ends: between accept and answer, and between publish and confirm."""

from __future__ import annotations

import random
from collections import Counter

import httpx
import pytest

from tests.crash import ledger
from tests.crash.customers import Customers
from tests.crash.programs import port_of
from tests.crash.shop import Shop
from tests.support.eventually import eventually


@pytest.mark.parametrize(("when", "verdict"), [("before", "accepted"), ("after", "duplicate")])
async def test_gateway_killed_around_its_commit_gives_no_202_and_the_second_delivery_starts_no_second_run(
    shop: Shop, when: str, verdict: str
) -> None:
    shop.start_sink()
    await shop.start_ready("worker")
    await shop.start_relay().line("^ready$")
    dying = shop.start("gateway", fatal=f"accept.1.{when}")
    ports = [port_of(dying)]
    customers = Customers(lambda: ports[-1], random.Random(1))
    customers.orders["shop/1"] = 101

    async with httpx.AsyncClient(timeout=20) as client:
        with pytest.raises(httpx.TransportError):
            await customers.post(client, customers.order("shop/1"))
        assert dying.wait() == -9
        assert f"SIGKILL at accept.1.{when}" in dying.output

        ports.append(port_of(shop.start("gateway")))
        assert await customers.send(client, customers.order("shop/1")) == verdict
        assert await customers.send(client, customers.order("shop/1")) == "duplicate"
        await customers.send(client, customers.payment("shop/1"))
    await shop.all_done(1)
    assert await shop.faults(customers.orders) == []


async def test_relay_killed_between_publish_and_confirm_publishes_again_with_the_same_identity(
    shop: Shop,
) -> None:
    shop.start_sink()
    await shop.start_ready("worker")
    port = port_of(shop.start("gateway"))
    customers = Customers(lambda: port, random.Random(1))
    customers.orders["shop/1"] = 101
    shop.hold.touch()
    # Its publish does not time out before it dies; its lease is then twenty seconds if it is not given up by dying.
    dying = shop.start_relay()
    await dying.line("^ready$")
    async with httpx.AsyncClient(timeout=20) as client:
        await customers.send(client, customers.order("shop/1"))
        await customers.send(client, customers.payment("shop/1"))

    # The sink has the event, and the relay does not know it.
    await eventually(lambda: ledger.read_sink(shop.sink_file), timeout=30)
    dying.kill()
    shop.hold.unlink()
    await shop.start_relay().line("^ready$")
    await shop.all_done(1)

    assert await shop.faults(customers.orders) == []
    times = Counter(
        (one.source, one.id) for one in ledger.read_sink(shop.sink_file) if one.type == "order.booked"
    )
    assert len(times) == 1
    assert min(times.values()) >= 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_relay_killed_around_its_settle_loses_nothing_and_the_next_keeps_the_order(
    shop: Shop, when: str
) -> None:
    shop.start_sink()
    await shop.start_ready("worker")
    port = port_of(shop.start("gateway"))
    customers = Customers(lambda: port, random.Random(1))
    dying = shop.start_relay(fatal=f"outbox_settle.1.{when}")
    await dying.line("^ready$")

    await customers.buy(0, 10, over=0.5)
    assert dying.wait() == -9
    await shop.start_relay().line("^ready$")
    await shop.all_done(10)

    assert await shop.faults(customers.orders) == []
