"""The Kafka broker of a run: started once, shared by all processes; and one that lives inside a process.

The broker of a run is real. ``mock_cluster`` is librdkafka's: Kafka's protocol without a server, for tests that need no
more of it, and that may kill it. It makes every topic by itself, with four partitions, and lets a group's first member
wait three seconds for others.
"""

import asyncio
import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from tests.support import containers, run
from tests.support.eventually import eventually
from tests.support.processes import Process, spawn
from tests.support.servers import READY_WITHIN, UnavailableError, run_apart

VARIABLE = "EDDA_TEST_KAFKA_URL"
IMAGE = "apache/kafka:4.0.0"

#: The password that the broker's second port asks for, where the run has started it.
SASL_USER, SASL_PASSWORD = "edda", "kafka-pw"

_DATA = "/tmp/kafka-data"

Headers = Iterable[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Kafka:
    """A broker. ``sasl`` is the address that asks for a password, where there is one."""

    bootstrap: str
    sasl: str | None = None
    container: str | None = None
    is_mock: bool = False

    async def topic(self, partitions: int = 1, *, name: str | None = None, **config: str) -> str:
        """A topic that no other test has; settings with ``_`` for ``.``."""
        name = name or new_name("t")
        if self.is_mock:
            return name  # made by whoever asks for it
        settings = {key.replace("_", "."): value for key, value in config.items()}
        async with self._admin() as admin:
            await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        await eventually(lambda: self._has(name, partitions))
        return name

    async def configure(self, topic: str, **config: str) -> None:
        """Change settings of a topic; with ``_`` for ``.``."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        async with self._admin() as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, settings)])

    async def delete(self, topic: str) -> None:
        """Delete a topic."""
        async with self._admin() as admin:
            await admin.delete_topics([topic])

    async def delete_records(self, topic: str, before: int, partition: int = 0) -> None:
        """As retention does it: what is older than this offset is gone."""
        async with self._admin() as admin:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})

    async def send(
        self,
        topic: str,
        *records: tuple[bytes | None, bytes | None, Headers],
        partition: int | None = None,
    ) -> list[int]:
        """Send (key, value, headers); their offsets."""
        async with self.producer() as producer:
            futures = [
                await producer.send(topic, value, key, partition=partition, headers=list(headers))
                for key, value, headers in records
            ]
            return [(await future).offset for future in futures]

    @contextlib.asynccontextmanager
    async def producer(self, **settings: Any) -> AsyncIterator[Any]:
        """A plain producer."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", **settings)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def read(self, topic: str, count: int, timeout: float = 20) -> list[Any]:
        """The topic's first ``count`` records, partition by partition as they come."""
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=50
        )
        await consumer.start()
        records: list[Any] = []
        deadline = time.monotonic() + timeout
        try:
            while len(records) < count:
                assert time.monotonic() < deadline, f"{len(records)} records of {count} in {topic}"
                for found in (await consumer.getmany(timeout_ms=100)).values():
                    records += found
        finally:
            await consumer.stop()
        return records

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """What the group has committed in Kafka: partition -> offset."""
        async with self._admin() as admin:
            found = await admin.list_consumer_group_offsets(group)
            return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic}

    async def members(self, group: str) -> int:
        """How many members the group has now."""
        async with self._admin() as admin:
            [answer] = await admin.describe_consumer_groups([group])
            return len(answer.groups[0][5])

    async def add_partitions(self, topic: str, total: int) -> None:
        """Give a topic more partitions."""
        async with self._admin() as admin:
            await admin.create_partitions({topic: NewPartitions(total_count=total)})
        await eventually(lambda: self._has(topic, total))

    async def rewind(self, group: str, topic: str, offset: int = 0) -> None:
        """Set what a group without members has committed in Kafka, as the command line tools do."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, at) for at in await self.committed(group, topic)]
            consumer.assign(partitions)
            await consumer.commit(dict.fromkeys(partitions, offset))
        finally:
            await consumer.stop()

    async def _has(self, topic: str, partitions: int) -> bool:
        async with self._admin() as admin:
            [found] = await admin.describe_topics([topic])
            leaders = [partition["leader"] for partition in found["partitions"]]
            return found["error_code"] == 0 and len(leaders) == partitions and min(leaders) >= 0

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def new_name(prefix: str) -> str:
    """A name (of a topic, a group) that nobody else has."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def bootstrap() -> str:
    """The address of the run's broker. Raises UnavailableError; asking again in this run fails at once."""
    return shared().bootstrap


def shared() -> Kafka:
    """The run's broker; started on first use. Raises UnavailableError."""
    if address := os.environ.get(VARIABLE):
        return Kafka(address)
    with run.lock("kafka"):
        known = run.directory() / "kafka.json"
        if not known.exists():
            known.write_text(json.dumps(_start()))
        found: dict[str, str] = json.loads(known.read_text())
    if "bootstrap" not in found:
        raise UnavailableError(found["reason"])
    return Kafka(**found)  # type: ignore[arg-type]  # all are texts


def serves(address: str) -> bool:
    """True if a broker answers there now."""

    async def ask() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=5_000)
        try:
            await admin.start()
        finally:
            await admin.close()

    try:
        run_apart(ask)
    except Exception:
        return False
    return True


def start_own() -> Kafka:
    """A broker for one test, which may stop it. Raises UnavailableError where there is no container engine."""
    try:
        return Kafka(**_from_container(keeps_data=True))  # type: ignore[arg-type]  # all are texts
    except Exception as error:
        msg = f"this test stops its broker, and needs a container for that: {type(error).__name__}: {error}"
        raise UnavailableError(msg) from error


def remove(broker: Kafka) -> None:
    """Remove a broker that ``start_own`` has started."""
    assert broker.container is not None
    containers.remove(broker.container)


def _start() -> dict[str, str]:
    try:
        return _from_container(keeps_data=False)
    except Exception as error:
        return {
            "reason": f"no Kafka for the tests. Tried a container: {type(error).__name__}: {error}. Start a container "
            f"engine, or set {VARIABLE} to a broker's host:port, or EDDA_TEST_KAFKA_IMAGE to an image that this "
            "machine has."
        }


def _from_container(*, keeps_data: bool) -> dict[str, str]:
    # Clients go to the address that a broker advertises: the port outside must be known before it starts. The broker
    # talks to itself, too, over a listener of its own, because that address is none inside the container.
    plain, sasl = _free_port(), _free_port()
    environment = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://0.0.0.0:9092,AUTH://0.0.0.0:9095,BROKER://localhost:9094,"
        "CONTROLLER://localhost:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{plain},AUTH://127.0.0.1:{sasl},BROKER://localhost:9094",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "BROKER",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,BROKER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
        "AUTH:SASL_PLAINTEXT",
        "KAFKA_LISTENER_NAME_AUTH_SASL_ENABLED_MECHANISMS": "PLAIN",
        "KAFKA_LISTENER_NAME_AUTH_PLAIN_SASL_JAAS_CONFIG": "org.apache.kafka.common.security.plain.PlainLoginModule "
        f'required user_{SASL_USER}="{SASL_PASSWORD}";',
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_MIN_INSYNC_REPLICAS": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        # A dead member is missed within the patience of a test, and a misspelt topic stays missing.
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "KAFKA_LOG_DIRS": _DATA,
    }
    started = containers.start(
        os.environ.get("EDDA_TEST_KAFKA_IMAGE", IMAGE),
        9092,
        environment=environment,
        tmpfs=[] if keeps_data else [_DATA],
        host_ports={9092: plain, 9095: sasl},
    )
    address = f"127.0.0.1:{plain}"
    run_apart(lambda: until_it_serves(address, started.id))
    return {"bootstrap": address, "sasl": f"127.0.0.1:{sasl}", "container": started.id}


async def until_it_serves(address: str, container: str) -> None:
    """Wait until a starting broker answers."""

    async def answers() -> bool:
        if logs := containers.logs_if_stopped(container):
            msg = f"the container stopped by itself:\n{logs}"
            raise RuntimeError(msg)
        admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=5_000)
        try:
            await admin.start()
        except (KafkaError, OSError) as error:
            msg = f"{type(error).__name__}: {error}"
            raise AssertionError(msg) from error
        finally:
            await admin.close()
        return True

    await eventually(answers, READY_WITHIN, pause=0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------------------------------------- the mock


@contextmanager
def mock_cluster(brokers: int = 1) -> Iterator[tuple[Kafka, Process]]:
    """A mock cluster in a process of its own, which a test may kill or freeze."""
    with spawn("tests.support.kafka:serve_mock", str(brokers)) as process:
        yield Kafka(process.wait_for_line(r"mock at (\S+)")[1], is_mock=True), process


async def serve_mock(brokers: str) -> None:
    """The process."""
    from confluent_kafka import Producer

    cluster = Producer({"test.mock.num.brokers": int(brokers), "log_level": 0})
    known = cluster.list_topics(timeout=10).brokers.values()
    print("mock at", ",".join(f"{broker.host}:{broker.port}" for broker in known), flush=True)
    await asyncio.Event().wait()
