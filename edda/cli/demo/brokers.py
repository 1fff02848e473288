"""The world outside the shop, where it is Kafka or RabbitMQ: who orders, and who hears that an order was paid.

Plain clients on purpose: what the demo shows is what others see. ``embedded`` is librdkafka's mock cluster, a broker of
Kafka's protocol inside a process; it keeps about 5 MB of a topic.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from edda.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from gateways.gateway import Gateway
    from outbox_relays.publisher import Publisher

#: Attributes of an event, without a transport's prefix, and ``content-type``; and its data.
Message = tuple[Mapping[str, str], bytes]


class Customers(Protocol):
    """Somebody who sends orders to a broker."""

    async def send(self, key: str, attributes: Mapping[str, str], data: bytes) -> None:
        """Returns when the broker has it."""
        ...


class Broker(Protocol):
    """One kind of broker."""

    name: str

    async def prepare(self, orders: str, paid: str) -> None:
        """Make what the demo needs there."""
        ...

    def gateway(self, orders: str) -> Gateway:
        """How orders come in."""
        ...

    def publisher(self, paid: str, publish_timeout: float) -> Publisher:
        """How ``order.paid`` goes out."""
        ...

    @asynccontextmanager
    def customers(self, orders: str) -> AsyncIterator[Customers]:
        """Who orders."""
        ...

    def heard(self, paid: str) -> AsyncIterator[Message]:
        """Everything that arrives, from the first message on."""
        ...


def broker_of(url: str) -> Broker:
    """By its address: ``amqp://...`` is RabbitMQ, everything else Kafka's ``host:port``."""
    return _RabbitMQ(url) if url.startswith(("amqp://", "amqps://")) else _Kafka(url)


class _Kafka:
    name = "Kafka"

    def __init__(self, bootstrap: str) -> None:
        try:
            import aiokafka  # noqa: F401, its absence is told here
        except ImportError as error:
            what = "edda demo"
            raise MissingExtraError(what, "demo") from error
        self._bootstrap = bootstrap

    async def prepare(self, orders: str, paid: str) -> None:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic
        from aiokafka.errors import KafkaError

        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            await admin.start()
            await admin.create_topics([NewTopic(topic, 4, 1) for topic in (orders, paid)])
        except KafkaError as error:
            raise ConfigurationError(
                f"edda demo: Kafka at {self._bootstrap!r} does not do: {type(error).__name__}: {error}. Nothing was "
                "sent. Check --kafka, or leave it away for an embedded one."
            ) from error
        finally:
            await admin.close()

    def gateway(self, orders: str) -> Gateway:
        from gateways.kafka import KafkaGateway

        return KafkaGateway(
            self._bootstrap, topics=[orders], group_id=orders, name="orders", session_timeout=6.0
        )

    def publisher(self, paid: str, publish_timeout: float) -> Publisher:
        from outbox_relays.kafka import KafkaPublisher

        return KafkaPublisher(
            self._bootstrap, paid, types=["order.paid"], destination="paid", publish_timeout=publish_timeout
        )

    @asynccontextmanager
    async def customers(self, orders: str) -> AsyncIterator[Customers]:
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True)
        await producer.start()

        class Sender:
            async def send(self, key: str, attributes: Mapping[str, str], data: bytes) -> None:
                headers = [(_header("ce_", name), text.encode()) for name, text in attributes.items()]
                await producer.send_and_wait(orders, data, key.encode(), headers=headers)

        try:
            yield Sender()
        finally:
            await producer.stop()

    async def heard(self, paid: str) -> AsyncIterator[Message]:
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(paid, bootstrap_servers=self._bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            async for record in consumer:
                attributes = {name.removeprefix("ce_"): value.decode() for name, value in record.headers}
                yield attributes, record.value or b""
        finally:
            await consumer.stop()


class _RabbitMQ:
    name = "RabbitMQ"

    def __init__(self, url: str) -> None:
        try:
            import aio_pika  # noqa: F401, its absence is told here
        except ImportError as error:
            what = "edda demo --rabbitmq"
            raise MissingExtraError(what, "rabbitmq") from error
        self._url = url

    async def prepare(self, orders: str, paid: str) -> None:
        import aio_pika

        try:
            async with await aio_pika.connect(self._url, timeout=10) as connection:
                channel = await connection.channel()
                for queue in (orders, paid):
                    await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        except (aio_pika.exceptions.AMQPError, OSError, TimeoutError) as error:
            raise ConfigurationError(
                f"edda demo: RabbitMQ does not do: {type(error).__name__}. Nothing was sent. Check --rabbitmq: "
                "amqp://user:password@host/vhost"
            ) from error

    def gateway(self, orders: str) -> Gateway:
        from gateways.rabbitmq import RabbitMQGateway

        return RabbitMQGateway(self._url, queues=[orders], name="orders")

    def publisher(self, paid: str, publish_timeout: float) -> Publisher:
        from outbox_relays.rabbitmq import RabbitMQPublisher

        return RabbitMQPublisher(
            self._url, "", paid, types=["order.paid"], destination="paid", publish_timeout=publish_timeout
        )

    @asynccontextmanager
    async def customers(self, orders: str) -> AsyncIterator[Customers]:
        import aio_pika

        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel(on_return_raises=True)

            class Sender:
                async def send(self, key: str, attributes: Mapping[str, str], data: bytes) -> None:
                    del key
                    message = aio_pika.Message(
                        data,
                        headers={
                            _header("ce-", name): text
                            for name, text in attributes.items()
                            if name != "content-type"
                        },
                        content_type=attributes["content-type"],
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    )
                    await channel.default_exchange.publish(message, orders, timeout=10)

            yield Sender()

    async def heard(self, paid: str) -> AsyncIterator[Message]:
        import aio_pika

        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            await channel.set_qos(100)
            queue = await channel.get_queue(paid)
            async with queue.iterator(no_ack=False) as messages:
                async for message in messages:
                    attributes = {
                        name.removeprefix("ce-"): str(value) for name, value in message.headers.items()
                    }
                    yield attributes, message.body
                    await message.ack()


def _header(prefix: str, name: str) -> str:
    return name if name == "content-type" else prefix + name


class Embedded:
    """A Kafka of its own inside this process, with these topics (a topic is made when it is asked for)."""

    def __init__(self, *topics: str) -> None:
        try:
            from confluent_kafka import Producer
        except ImportError as error:
            what = "edda demo without --kafka or --rabbitmq"
            raise MissingExtraError(what, "demo") from error
        self._client = Producer(
            {"test.mock.num.brokers": 1, "log_level": 0}
        )  # the cluster lives as long as it does
        [broker] = self._client.list_topics(timeout=10).brokers.values()
        for topic in topics:
            self._client.list_topics(topic, timeout=10)
        self.address = f"{broker.host}:{broker.port}"
