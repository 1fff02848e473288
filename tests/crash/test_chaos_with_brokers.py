"""Thousands of orders over Kafka and RabbitMQ while everything dies in turns; at the end the ledger must add up.

Gateways, workers and relays are killed and frozen at random, and once each: the broker is restarted, a queue is deleted
under its consumer, the database is away for longer than every lease. A run prints its seed; ``EDDA_CHAOS_SEED`` repeats
its choices, ``EDDA_CHAOS_ORDERS`` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.crash import ledger, roads
from tests.crash.cast import Role, between
from tests.crash.customers import Customers, customers_on
from tests.crash.proxies import Proxy
from tests.crash.roads import Road
from tests.crash.shop import Shop
from tests.support import containers
from tests.support.eventually import eventually
from tests.support.kafka import Kafka, until_it_serves
from tests.support.rabbitmq import OwnBroker

#: Each is two events in and three out.
ORDERS = int(os.environ.get("EDDA_CHAOS_ORDERS", "4000"))
ORDERS_A_SECOND = 70

_DATABASE_AWAY = 20.0

#: What happens once in a run, beside the kills: its name, and how it is done.
Harm = tuple[str, Callable[[], Awaitable[None]]]

pytestmark = [pytest.mark.long, pytest.mark.timeout(ORDERS / ORDERS_A_SECOND + 500)]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_orders_survive_chaos_from_kafka_to_kafka(shop: Shop, own_kafka: Kafka) -> None:
    shop.way_in = Road("kafka", own_kafka.bootstrap, await own_kafka.topic(6))
    shop.way_out = Road("kafka", own_kafka.bootstrap, await own_kafka.topic(6))
    await _survive(shop, [("Kafka restarted", lambda: _restart(own_kafka))])


@pytest.mark.parametrize("database", ["mysql"], indirect=True)
async def test_orders_survive_chaos_from_rabbitmq_to_rabbitmq(shop: Shop, own_rabbitmq: OwnBroker) -> None:
    shop.way_in = Road("rabbitmq", own_rabbitmq.url, own_rabbitmq.name("in"))
    shop.way_out = Road("rabbitmq", own_rabbitmq.url, own_rabbitmq.name("out"))
    await _survive(shop, [("RabbitMQ restarted", lambda: _stop_and_start(own_rabbitmq))], own_rabbitmq)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_orders_survive_chaos_from_kafka_to_rabbitmq(
    shop: Shop, own_kafka: Kafka, own_rabbitmq: OwnBroker
) -> None:
    shop.way_in = Road("kafka", own_kafka.bootstrap, await own_kafka.topic(6))
    shop.way_out = Road("rabbitmq", own_rabbitmq.url, own_rabbitmq.name("out"))
    await _survive(
        shop,
        [
            ("Kafka restarted", lambda: _restart(own_kafka)),
            ("RabbitMQ restarted", lambda: _stop_and_start(own_rabbitmq)),
        ],
    )


async def _survive(shop: Shop, harms: Sequence[Harm], queues: OwnBroker | None = None) -> None:
    seed = int(os.environ.get("EDDA_CHAOS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"EDDA_CHAOS_SEED={seed}")
    dice, began = random.Random(seed), time.monotonic()
    assert shop.way_in is not None
    customers = customers_on(shop.way_in, dice)
    harms = list(harms)
    async with between(shop) as proxy:
        if proxy is not None:
            harms.append(("database away", lambda: _take_away(proxy)))
        if queues is not None:
            harms.append(("queue deleted", lambda: _delete_the_queue(queues, shop, customers)))
        dice.shuffle(harms)
        cast = [
            *(Role("worker", lambda: shop.start("worker", course="short", diary=None)) for _ in range(2)),
            *(Role("gateway", shop.start_gateway) for _ in range(2)),
            *(Role("relay", lambda: shop.start_relay(publish_timeout=2.0)) for _ in range(2)),
        ]
        for role in cast:
            await role.start()
        buying = asyncio.create_task(customers.buy(0, ORDERS, over=ORDERS / ORDERS_A_SECOND, at_once=200))
        faults = await _do_harm(cast, harms, dice, buying)
        for role in cast:
            await role.heal()
        harmed = time.monotonic() - began
        await shop.all_done(ORDERS, timeout=300)
        await shop.drained(timeout=60)
        found = await shop.close()

    said = "\n".join(process.output for process in shop.processes)
    print(f"{ORDERS} orders, {harmed:.0f} s of harm, {time.monotonic() - began:.0f} s in all")
    print(f"faults {dict(faults)}, in vain {dict(customers.in_vain)}, {len(found)} events came out")
    assert await shop.faults(customers.orders, "short") == [], f"EDDA_CHAOS_SEED={seed}"
    accepted = await shop.accepted()
    assert len(accepted) == 2 * ORDERS
    if shop.way_in.kind == "kafka":
        assert ledger.out_of_order(await roads.read(shop.way_in), accepted) == [], f"EDDA_CHAOS_SEED={seed}"
    # It was chaos: every role was hit both ways, all else happened once, and takeovers followed.
    assert faults.keys() == {
        *(f"{role.name} {what}" for role in cast for what in ("killed", "frozen")),
        *(name for name, _ in harms),
    }
    assert "instances_requeued" in said


async def _do_harm(
    cast: Sequence[Role], harms: Sequence[Harm], dice: random.Random, until: asyncio.Task[None]
) -> Counter[str]:
    """While the customers buy. Every role is hit both ways early; the great harms are spread over the time."""
    done: Counter[str] = Counter()
    seconds = ORDERS / ORDERS_A_SECOND

    async def great_harms() -> None:
        for name, do in harms:
            await asyncio.sleep(seconds / (len(harms) + 1) * dice.uniform(0.5, 1))
            await do()
            done[name] += 1

    async def small_harms() -> None:
        deck: list[tuple[Role, str]] = []
        while not (until.done() and great.done()):
            await asyncio.sleep(dice.uniform(0.5, 3))
            if not deck:
                deck = [(role, what) for role in cast for what in ("killed", "frozen")]
                dice.shuffle(deck)
            role, what = deck.pop()
            if what == "killed":
                await role.kill()
            else:
                # Shorter and longer than leases and sessions.
                group.create_task(role.stop_for(dice.uniform(0.2, 6)))
            done[f"{role.name} {what}"] += 1

    async with asyncio.TaskGroup() as group:
        great = group.create_task(great_harms())
        group.create_task(small_harms())
        group.create_task(_finished(until))
    return done


async def _finished(task: asyncio.Task[None]) -> None:
    await task


async def _restart(kafka: Kafka) -> None:
    assert kafka.container is not None
    await asyncio.to_thread(containers.restart, kafka.container)
    await until_it_serves(kafka.bootstrap, kafka.container)


async def _stop_and_start(rabbitmq: OwnBroker) -> None:
    await rabbitmq.stop_server()
    await rabbitmq.start_server()


async def _take_away(proxy: Proxy) -> None:
    await proxy.down()
    await asyncio.sleep(_DATABASE_AWAY)
    await proxy.up()


async def _delete_the_queue(broker: OwnBroker, shop: Shop, customers: Customers) -> None:
    """While it is empty and all that was in it is settled: a gateway makes it again."""
    assert shop.way_in is not None
    name = shop.way_in.name

    async def is_settled() -> bool:
        listed = await broker.control("list_queues", "--silent", "name", "messages")
        return f"{name}\t0" in listed.splitlines()

    async with customers.silent():
        await eventually(is_settled, timeout=90, pause=0.5)
        await broker.delete_queue(name)
