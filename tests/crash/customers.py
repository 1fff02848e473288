"""Those who send events: over HTTP, Kafka or RabbitMQ, again and again until it is confirmed, as a sender should."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aio_pika
import aiormq
import httpx
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.crash import workflows
from tests.crash.roads import Road
from tests.support.eventually import eventually

_PAUSE = 0.1
_TIMEOUT = 5.0

Event = dict[str, Any]
Send = Callable[[Event], Awaitable[object]]


class Customers:
    """Sends orders and payments; notes what the gateway said, and what it was sent in vain."""

    def __init__(self, gateway: Callable[[], int], dice: random.Random, shop: str = "shop") -> None:
        self._gateway = gateway
        self._dice = dice
        self._shop = shop
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._sending = 0
        self.orders: dict[str, int] = {}
        self.verdicts: Counter[str] = Counter()
        self.in_vain: Counter[str] = Counter()

    async def buy(self, first: int, count: int, *, over: float, at_once: int = 20) -> None:
        """Send ``count`` orders and their payments within about ``over`` seconds.

        Some payments come before their order, and some of both are sent twice.
        """
        gate = asyncio.Semaphore(at_once)
        async with self._connected() as send, asyncio.TaskGroup() as group:
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
                    group.create_task(self._later(send, gate, at, event))

    async def _later(self, send: Send, gate: asyncio.Semaphore, delay: float, event: Event) -> None:
        await asyncio.sleep(delay)
        async with gate:
            await self._may_send.wait()
            self._sending += 1
            try:
                await send(event)
            finally:
                self._sending -= 1

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[None]:
        """Nothing is being sent inside the block."""
        self._may_send.clear()
        try:
            await eventually(lambda: self._sending == 0, timeout=30)
            yield
        finally:
            self._may_send.set()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Send]:
        async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
            yield lambda event: self.send(client, event)

    async def send(self, client: httpx.AsyncClient, event: Event) -> str:
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

    async def post(self, client: httpx.AsyncClient, event: Event) -> httpx.Response:
        """Once."""
        return await client.post(
            f"http://127.0.0.1:{self._gateway()}/events",
            headers={"content-type": "application/cloudevents+json"},
            content=json.dumps(event),
        )

    def order(self, order_id: str) -> Event:
        """The event that starts an order."""
        customer = f"customer-{int(order_id.rpartition('/')[2]) % 7}"
        return _event("order.created", "/customers", order_id, {"order_id": order_id, "customer": customer})

    def payment(self, order_id: str) -> Event:
        """The event that it waits for."""
        data = {"order_id": order_id, "amount": self.orders[order_id]}
        return _event(workflows.payment_type(order_id), "/bank", order_id, data)


class KafkaCustomers(Customers):
    """To a topic; what belongs to an order has its id as the key."""

    def __init__(self, road: Road, dice: random.Random, shop: str = "shop") -> None:
        super().__init__(lambda: 0, dice, shop)
        self._road = road

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Send]:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._road.address, acks="all", request_timeout_ms=int(_TIMEOUT * 1_000)
        )
        await producer.start()

        async def send(event: Event) -> None:
            while True:
                try:
                    await producer.send_and_wait(
                        self._road.name,
                        json.dumps(event).encode(),
                        event["data"]["order_id"].encode(),
                        headers=[("content-type", b"application/cloudevents+json")],
                    )
                except KafkaError as error:
                    self.in_vain[type(error).__name__] += 1
                    await asyncio.sleep(_PAUSE)
                else:
                    return

        try:
            yield send
        finally:
            await producer.stop()


class RabbitMQCustomers(Customers):
    """To a queue; while there is none, or no broker, they try again."""

    def __init__(self, road: Road, dice: random.Random, shop: str = "shop") -> None:
        super().__init__(lambda: 0, dice, shop)
        self._road = road
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Send]:
        try:
            yield self._send
        finally:
            await self._disconnect()

    async def _send(self, event: Event) -> None:
        while True:
            try:
                async with asyncio.timeout(_TIMEOUT):
                    channel = await self._usable_channel()
                    await channel.default_exchange.publish(
                        aio_pika.Message(
                            json.dumps(event).encode(),
                            content_type="application/cloudevents+json",
                            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                            message_id=uuid.uuid4().hex,  # by it the client knows which one came back
                        ),
                        self._road.name,
                    )
            except aio_pika.exceptions.PublishError:  # no such queue now
                self.in_vain["unroutable"] += 1
            except (
                aiormq.exceptions.AMQPError,
                aiormq.exceptions.ChannelInvalidStateError,
                OSError,
            ) as error:
                self.in_vain[type(error).__name__] += 1
            else:
                return
            await asyncio.sleep(_PAUSE)

    async def _usable_channel(self) -> AbstractChannel:
        async with self._connecting:
            if self._channel is None or self._channel.is_closed:
                await self._disconnect()
                self._connection = await aio_pika.connect(self._road.address)
                self._channel = await self._connection.channel(on_return_raises=True)
            return self._channel

    async def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(Exception):  # it may have ended already, and badly
                await self._connection.close()
        self._connection = self._channel = None


def customers_on(road: Road, dice: random.Random, shop: str = "shop") -> Customers:
    """Those who send over that road."""
    return (KafkaCustomers if road.kind == "kafka" else RabbitMQCustomers)(road, dice, shop)


def _event(event_type: str, source: str, event_id: str, data: dict[str, Any]) -> Event:
    return {"specversion": "1.0", "type": event_type, "source": source, "id": event_id, "data": data}
