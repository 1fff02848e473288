"""Kafka and RabbitMQ, in and out, each beside a plain client that does nothing else, in the same run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aio_pika
from aio_pika.abc import HeadersType
from aiokafka import AIOKafkaProducer

from edda.inbox.accept import Inbox
from gateways.gateway import Gateway
from gateways.kafka import KafkaGateway
from gateways.rabbitmq import RabbitMQGateway
from outbox_relays.kafka import KafkaPublisher
from outbox_relays.publisher import Publisher
from outbox_relays.rabbitmq import RabbitMQPublisher
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.relay import drain
from tests.benchmarks.truth import Deadline
from tests.support.kafka import Kafka, shared
from tests.support.rabbitmq import Broker, server_url

_PARTITIONS = 4
_DATA = b'{"number": 1, "text": "' + b"x" * 100 + b'"}'
_RELAY_BATCH = 1_000


def attributes(number: int) -> dict[str, str]:
    """Of one event; each has an id of its own."""
    return {"specversion": "1.0", "id": f"e{number}", "source": "/bench", "type": "bench.happened"}


# ---------------------------------------------------------------------------------------------- in


async def kafka_in(job: Job) -> list[Figure]:
    """Records of four partitions until all are accepted."""
    kafka = shared()
    topic = await kafka.topic(_PARTITIONS)
    await _send(kafka, topic, job.count)
    begun = time.monotonic()
    await kafka.read(topic, job.count, timeout=60)
    alone = job.count / (time.monotonic() - begun)
    gateway = KafkaGateway(kafka.bootstrap, [topic], topic)
    accepted = await _accepted(job, gateway, "Kafka to accepted")
    return [
        accepted,
        job.figure("Kafka, reading alone", alone, "events/s", items=job.count, engine="aiokafka"),
    ]


async def rabbitmq_in(job: Job) -> list[Figure]:
    """Messages of one quorum queue until all are accepted."""
    broker = Broker(server_url())
    try:
        queue = await broker.queue("quorum")
        await _publish(broker, queue, job.count)
        accepted = await _accepted(job, RabbitMQGateway(broker.url, [queue]), "RabbitMQ to accepted")
        await _publish(broker, queue, job.count)
        alone = job.count / await _timed(lambda: _consume(broker, queue, job.count))
        return [
            accepted,
            job.figure("RabbitMQ, reading alone", alone, "events/s", items=job.count, engine="aio-pika"),
        ]
    finally:
        await broker.close()


async def _accepted(job: Job, gateway: Gateway, title: str) -> Figure:
    async with job.app(work=False) as app, job.truth() as truth:
        inbox = Inbox(app.store)
        meter, deadline = job.meter(app), Deadline()
        with meter:
            await gateway.start(inbox)
            while await truth.count("identities") < job.count:
                deadline.check(title)
                await asyncio.sleep(0.02)
        await gateway.stop()
        await inbox.close()
        await truth.expect("events", "events", "1 = 1", job.count)
        rate = job.count / meter.cost.seconds
        cost = meter.cost.per_item(job.count)
        return job.figure(title, rate, "events/s", items=job.count, **{**cost, "flushes": None})


# ---------------------------------------------------------------------------------------------- out


async def kafka_out(job: Job) -> list[Figure]:
    """Rows of the outbox until the broker has confirmed all."""
    kafka = shared()
    topic = await kafka.topic(_PARTITIONS)
    out = await _drained(job, KafkaPublisher(kafka.bootstrap, topic), "outbox to Kafka")
    found = {dict(record.headers)["ce_id"] for record in await kafka.read(topic, job.count)}
    assert len(found) == job.count, f"the topic has {len(found)} different events of {job.count}"
    alone = job.count / await _timed(lambda: _send(kafka, topic, job.count))
    return [out, job.figure("Kafka, sending alone", alone, "events/s", items=job.count, engine="aiokafka")]


async def rabbitmq_out(job: Job) -> list[Figure]:
    """The same to a quorum queue."""
    broker = Broker(server_url())
    try:
        queue = await broker.queue("quorum")
        out = await _drained(job, RabbitMQPublisher(broker.url, "", queue), "outbox to RabbitMQ")
        assert await broker.ready(queue) == job.count
        alone = job.count / await _timed(lambda: _publish(broker, queue, job.count))
        return [
            out,
            job.figure("RabbitMQ, sending alone", alone, "events/s", items=job.count, engine="aio-pika"),
        ]
    finally:
        await broker.close()


async def _drained(job: Job, publisher: Publisher, title: str) -> Figure:
    return await drain(job, publisher, title, batch=_RELAY_BATCH)


# ---------------------------------------------------------------------------------------------- plain clients


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    begun = time.monotonic()
    await work()
    return time.monotonic() - begun


async def _send(kafka: Kafka, topic: str, count: int) -> None:
    headers = [
        [(f"ce_{name}", text.encode()) for name, text in attributes(number).items()]
        for number in range(count)
    ]
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=256 * 1024,
    )
    await producer.start()
    try:
        content_type = ("content-type", b"application/json")
        futures = [
            await producer.send(topic, _DATA, b"key-%d" % (number % 100), headers=[*one, content_type])
            for number, one in enumerate(headers)
        ]
        await asyncio.gather(*futures)
    finally:
        await producer.stop()


async def _publish(broker: Broker, queue: str, count: int) -> None:
    channel = await broker.channel()
    gate = asyncio.Semaphore(256)

    async def publish(number: int) -> None:
        async with gate:
            headers: HeadersType = {f"ce-{name}": text for name, text in attributes(number).items()}
            message = aio_pika.Message(
                _DATA, headers=headers, content_type="application/json", delivery_mode=2
            )
            await channel.default_exchange.publish(message, queue)

    for first in range(0, count, 2_000):
        await asyncio.gather(*(publish(number) for number in range(first, min(first + 2_000, count))))
    await channel.close()


async def _consume(broker: Broker, queue: str, count: int) -> None:
    channel = await broker.channel()
    await channel.set_qos(1_000)
    left = count
    async with (await channel.get_queue(queue)).iterator() as messages:
        async for message in messages:
            await message.ack()
            left -= 1
            if left == 0:
                break
    await channel.close()
