"""The customers of the demo: orders to the broker, payments over HTTP, some of them early, some twice."""

from __future__ import annotations

import asyncio
import random
import time

import aiohttp
from pydantic_core import from_json, to_json

from edda.cli.demo.brokers import Broker, Customers
from edda.cli.demo.ledger import Ledger, customer_of

#: (seconds from the start, type, order)
Delivery = tuple[float, str, str]

_INTERVAL = 0.03


def plan(first: int, end: int) -> list[Delivery]:
    """What is sent of these orders, by time: about a third of the payments before their order, some of both twice."""
    dice = random.Random(7)  # noqa: S311, a play and no secret
    deliveries: list[Delivery] = []
    for number in range(first, end):
        order_id = f"order-{number}"
        at = (number - first) * _INTERVAL
        deliveries.append((at, "order.created", order_id))
        early = dice.random() < 0.3
        pays_at = max(0.0, at - dice.uniform(0.05, 0.3)) if early else at + dice.uniform(0.05, 0.5)
        deliveries.append((pays_at, "payment.completed", order_id))
        if dice.random() < 0.2 or number == 0:  # one of each at least
            deliveries.append((pays_at + dice.uniform(0, 0.4), "payment.completed", order_id))
        if dice.random() < 0.1 or number == 1:
            deliveries.append((at + dice.uniform(0, 0.4), "order.created", order_id))
    return sorted(deliveries)


async def send_everything(orders: int, ledger: Ledger, broker: Broker, place: str, port: int) -> None:
    """Returns when all of it has been confirmed."""
    late = orders * 3 // 4
    async with (
        broker.customers(place) as customers,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(10)) as client,
        asyncio.TaskGroup() as group,
    ):
        for deliveries in (plan(0, late), plan(late, orders)):
            begun = time.monotonic()
            for at, kind, order_id in deliveries:
                await asyncio.sleep(max(0.0, at - (time.monotonic() - begun)))
                if kind == "order.created":
                    group.create_task(_order(customers, ledger, order_id))
                else:
                    group.create_task(_pay(client, ledger, order_id))
            # Those who take over shall have something to do. The ledger is copied and printed: it holds no events.
            while not ledger.all_killed:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def _order(customers: Customers, ledger: Ledger, order_id: str) -> None:
    customer = customer_of(order_id)
    data = {"order_id": order_id, "customer": customer}
    await customers.send(customer, _attributes("order.created", order_id), to_json(data))
    ledger.ordered(order_id)


async def _pay(client: aiohttp.ClientSession, ledger: Ledger, order_id: str) -> None:
    attributes = _attributes("payment.completed", order_id)
    headers = {name if name == "content-type" else f"ce-{name}": text for name, text in attributes.items()}
    data = to_json({"order_id": order_id, "payment_id": f"payment-of-{order_id}"})
    while True:
        try:
            async with client.post("/events", headers=headers, data=data) as answer:
                status, told = answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.2)  # the gateway has been killed; another one is on its way
            continue
        if status == 202:
            ledger.paid(order_id, from_json(told)["results"][0]["result"])
            return
        if status < 500 and status != 429:
            msg = f"the gateway refused an event: {told}"
            raise RuntimeError(msg)
        await asyncio.sleep(0.2)


def _attributes(kind: str, order_id: str) -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": f"{kind}/{order_id}",
        "source": "/demo/customers",
        "type": kind,
        "content-type": "application/json",
    }
