"""The roads that events take into a shop and out of it, and what a plain client finds at the end of one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aiokafka import AIOKafkaConsumer

from gateways.gateway import Gateway
from gateways.kafka import KafkaGateway
from gateways.rabbitmq import RabbitMQGateway
from outbox_relays.http import HttpPublisher
from outbox_relays.kafka import KafkaPublisher
from outbox_relays.publisher import Publisher
from outbox_relays.rabbitmq import RabbitMQPublisher
from tests.support.eventually import eventually

Kind = Literal["http", "kafka", "rabbitmq"]

#: What the sink's file has of an event, beside its data.
ATTRIBUTES = ("id", "source", "type", "sequence")

#: Seconds until the group misses a gateway that was killed: shorter than a test, longer than a busy machine's pauses.
_SESSION = 3.0


@dataclass(frozen=True, slots=True)
class Road:
    """A topic, a queue or a URL. ``group`` is the consumer group that reads the topic."""

    kind: Kind
    address: str
    name: str = ""
    group: str = "shop"

    def gateway(self) -> Gateway:
        """What takes events in from there (HTTP needs none: every gateway process serves it)."""
        if self.kind == "kafka":
            return KafkaGateway(self.address, [self.name], self.group, session_timeout=_SESSION)
        assert self.kind == "rabbitmq"
        return RabbitMQGateway(self.address, [self.name], declare="quorum")

    def publisher(self, publish_timeout: float) -> Publisher:
        """What sends events there."""
        if self.kind == "kafka":
            return KafkaPublisher(self.address, self.name, publish_timeout=publish_timeout)
        if self.kind == "rabbitmq":
            return RabbitMQPublisher(
                self.address, routing_key=self.name, declare="quorum", publish_timeout=publish_timeout
            )
        return HttpPublisher(self.address, publish_timeout=publish_timeout)


@dataclass(frozen=True, slots=True)
class Found:
    """An event that a plain client has read; ``lane``: what has an order there (a topic's partition, a queue)."""

    lane: int
    attributes: Mapping[str, str]
    data: bytes
    key: str = ""  #: the record's, where there is one

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two of them one."""
        return self.attributes["source"], self.attributes["id"]


async def read(road: Road) -> list[Found]:
    """All that is there: of a topic everything ever written, of a queue what waits in it, which is taken."""
    return await (_read_topic(road) if road.kind == "kafka" else _read_queue(road))


def write_down(found: Iterable[Found], sink: Path) -> None:
    """In the sink's file, as the HTTP sink writes."""
    with sink.open("a") as lines:
        for event in found:
            line = {name: event.attributes[name] for name in ATTRIBUTES}
            lines.write(json.dumps({**line, "data": event.data.decode()}) + "\n")


async def _read_topic(road: Road) -> list[Found]:
    found: list[Found] = []
    async with _topic(road) as consumer:
        for place, end in (await consumer.end_offsets(consumer.assignment())).items():
            while await consumer.position(place) < end:
                for record in (await consumer.getmany(place, timeout_ms=100)).get(place, ()):
                    headers = {name: value.decode() for name, value in record.headers}
                    event = _found(place.partition, headers, "ce_", record.value)
                    found.append(replace(event, key=(record.key or b"").decode()))
    return found


async def _read_queue(road: Road) -> list[Found]:
    found: list[Found] = []

    async def take(message: AbstractIncomingMessage) -> None:
        headers = {name: str(value) for name, value in message.headers.items()}
        found.append(_found(0, headers, "ce-", message.body))

    async with _queue(road) as queue:
        count = queue.declaration_result.message_count or 0
        await queue.consume(take, no_ack=True)
        await eventually(lambda: len(found) >= count, timeout=60)
    return found


@asynccontextmanager
async def _topic(road: Road) -> AsyncIterator[AIOKafkaConsumer]:
    """A plain consumer that is no member of a group, and so has all partitions."""
    consumer = AIOKafkaConsumer(
        road.name, bootstrap_servers=road.address, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def _queue(road: Road) -> AsyncIterator[AbstractQueue]:
    connection = await aio_pika.connect(road.address)
    try:
        channel = await connection.channel()
        yield await channel.declare_queue(road.name, passive=True)
    finally:
        await connection.close()


def _found(lane: int, headers: Mapping[str, str], prefix: str, body: bytes) -> Found:
    attributes: Mapping[str, Any]
    if not any(name.startswith(prefix) for name in headers):  # structured
        attributes = {name: str(value) for name, value in json.loads(body).items() if name != "data"}
        return Found(lane, attributes, json.dumps(json.loads(body)["data"]).encode())
    attributes = {name.removeprefix(prefix): value for name, value in headers.items()}
    return Found(lane, attributes, body)


async def waiting(road: Road) -> int:
    """Messages that are ready in a queue, and in nobody's hands."""
    async with _queue(road) as queue:
        return queue.declaration_result.message_count or 0


async def ends(road: Road) -> dict[int, int]:
    """Where each partition of a topic ends."""
    async with _topic(road) as consumer:
        found = await consumer.end_offsets(consumer.assignment())
        return {place.partition: end for place, end in found.items()}
