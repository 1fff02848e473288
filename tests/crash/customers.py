"""Those who send events: over HTTP, again and again until they get a 202, as a sender should."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from tests.crash import workflows

_PAUSE = 0.1


class Customers:
    """Sends orders and payments; notes what the gateway said, and what it was sent in vain."""

    def __init__(self, gateway: Callable[[], int], dice: random.Random, shop: str = "shop") -> None:
        self._gateway = gateway
        self._dice = dice
        self._shop = shop
        self.orders: dict[str, int] = {}
        self.verdicts: Counter[str] = Counter()
        self.in_vain: Counter[str] = Counter()

    async def buy(self, first: int, count: int, *, over: float, at_once: int = 20) -> None:
        """Send ``count`` orders and their payments within about ``over`` seconds.

        Some payments come before their order, and some of both are sent twice.
        """
        gate = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(timeout=5) as client, asyncio.TaskGroup() as group:
            for number in range(first, first + count):
                order_id = f"{self._shop}/{number}"
                self.orders[order_id] = 100 + number
                created = self._dice.uniform(0, over)
                paid = max(0.0, created + self._dice.uniform(-0.5, 0.5))
                times = [(created, self.order(order_id)), (paid, self.payment(order_id))]
                for at, event in list(times):
                    if self._dice.random() < 0.15:
                        times.append((at + self._dice.uniform(0, 0.5), event))
                for at, event in times:
                    group.create_task(self._later(client, gate, at, event))

    async def _later(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, delay: float, event: dict[str, Any]
    ) -> None:
        await asyncio.sleep(delay)
        async with gate:
            await self.send(client, event)

    async def send(self, client: httpx.AsyncClient, event: dict[str, Any]) -> str:
        """Until it is accepted; what became of it."""
        while True:
            try:
                answer = await self.post(client, event)
            except httpx.TransportError as error:
                self.in_vain[type(error).__name__] += 1
            else:
                if answer.status_code == 202:
                    verdict: str = answer.json()["results"][0]["result"]
                    self.verdicts[verdict] += 1
                    # Unless no worker had told of its triggers yet; the test would be wrong then.
                    assert (event["type"], verdict) != ("order.created", "unmatched")
                    return verdict
                self.in_vain[str(answer.status_code)] += 1
                assert answer.status_code in {429, 503}, answer.text
            await asyncio.sleep(_PAUSE)

    async def post(self, client: httpx.AsyncClient, event: dict[str, Any]) -> httpx.Response:
        """Once."""
        return await client.post(
            f"http://127.0.0.1:{self._gateway()}/events",
            headers={"content-type": "application/cloudevents+json"},
            content=json.dumps(event),
        )

    def order(self, order_id: str) -> dict[str, Any]:
        """The event that starts an order."""
        customer = f"customer-{int(order_id.rpartition('/')[2]) % 7}"
        return _event("order.created", "/customers", order_id, {"order_id": order_id, "customer": customer})

    def payment(self, order_id: str) -> dict[str, Any]:
        """The event that it waits for."""
        data = {"order_id": order_id, "amount": self.orders[order_id]}
        return _event(workflows.payment_type(order_id), "/bank", order_id, data)


def _event(event_type: str, source: str, event_id: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"specversion": "1.0", "type": event_type, "source": source, "id": event_id, "data": data}
