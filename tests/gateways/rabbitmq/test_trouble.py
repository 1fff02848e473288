"""What goes wrong between gateway and broker: told, tried again, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aio_pika
import aiormq
import pytest

from edda.storage.contract import Storage
from gateways.rabbitmq import RabbitMQGateway
from gateways.rabbitmq.connection import Link
from gateways.rabbitmq.topology import message_count
from tests.gateways.rabbitmq import raw
from tests.gateways.rabbitmq.conftest import StartGateway
from tests.gateways.rabbitmq.given import binary, consuming, ids, letters, nothing_left, numbered
from tests.inbox.given import stored
from tests.support.eventually import eventually
from tests.support.proxy import proxied
from tests.support.rabbitmq import Broker, OwnBroker


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks often, and tries again soon."""
    monkeypatch.setattr("gateways.rabbitmq.session._LOOK", 0.1)
    monkeypatch.setattr("gateways.rabbitmq.connection.LONGEST_PAUSE", 0.3)


async def told(gateway: RabbitMQGateway, *texts: str) -> None:
    """Its health says why it does not consume."""

    def says() -> bool:
        health = gateway.health()
        assert not health.healthy
        assert all(text in health.detail for text in texts), health.detail
        assert health.lag is None
        return True

    await eventually(says, 20)


async def all_stored(store: Storage, *ids: str) -> None:
    """They, and nothing else."""

    async def there() -> bool:
        return sorted(await stored(store)) == sorted(ids)

    await eventually(there, 20)


def channel_that_consumes(gateway: RabbitMQGateway) -> aiormq.Channel:
    """Its own, for what the broker or somebody else might do to it."""
    link = gateway._consumers[0].state.link
    assert link is not None
    channels = [
        channel for channel in link._connection.channels.values() if isinstance(channel, aiormq.Channel)
    ]
    [found] = [channel for channel in channels if channel.consumers]
    return found


# ---------------------------------------------------------------------------------------------- queues


async def test_missing_queue_is_told_not_made_and_consumed_when_it_is_there(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    name = rabbitmq.name()
    gateway = await start_gateway(lite, rabbitmq.url, name)
    await told(gateway, f"there is no queue '{name}'", "declare='quorum'")
    assert not await rabbitmq.exists(name)
    assert "gateway_consumes_again" in caplog.text
    await rabbitmq.queue("quorum", name)
    await consuming(gateway)
    await rabbitmq.publish(name, binary("a"))
    await all_stored(lite, "a")


async def test_queue_deleted_under_its_consumer_is_told_at_once_and_not_made_again(
    lite: Storage,
    rabbitmq: Broker,
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("gateways.rabbitmq.session._LOOK", 60.0)
    queue = await rabbitmq.queue("quorum")
    gateway = await start_gateway(lite, rabbitmq.url, queue)
    await consuming(gateway)
    await rabbitmq.delete_queue(queue)
    await told(gateway, "there is no queue")
    assert "the broker cancelled the consumer" in "".join(str(record.__dict__) for record in caplog.records)
    assert not await rabbitmq.exists(queue)
    await rabbitmq.queue("classic", queue)
    await rabbitmq.publish(queue, binary("a"))
    await all_stored(lite, "a")


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_queue_is_made_where_that_is_asked_for_and_again_when_it_was_deleted(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway, kind: str
) -> None:
    name = rabbitmq.name()
    gateway = await start_gateway(lite, rabbitmq.url, name, declare=kind, single_active=True)
    await consuming(gateway)
    await rabbitmq.delete_queue(name)
    await eventually(lambda: rabbitmq.exists(name))
    await consuming(gateway)
    await rabbitmq.publish(name, binary("a"))
    await all_stored(lite, "a")


async def test_trouble_of_one_queue_does_not_disturb_another(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    good, missing = await rabbitmq.queue(), rabbitmq.name()
    gateway = await start_gateway(lite, rabbitmq.url, good, missing)
    await told(gateway, f"queue {missing}: ", "there is no queue")
    await rabbitmq.publish(good, *numbered(3))
    await all_stored(lite, *ids(3))
    assert f"queue {good}" not in gateway.health().detail


async def test_queue_that_was_declared_otherwise_is_told_with_what_to_do(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("classic")
    gateway = await start_gateway(lite, rabbitmq.url, queue, declare="quorum")
    await told(gateway, "declared otherwise", "declare=None takes it as it is")


async def test_stream_is_refused(lite: Storage, rabbitmq: Broker, start_gateway: StartGateway) -> None:
    queue = await rabbitmq.queue("stream")
    await told(await start_gateway(lite, rabbitmq.url, queue), "is a stream")


@pytest.fixture
async def connection(rabbitmq: Broker) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    connection = await aio_pika.connect(rabbitmq.url)
    yield connection
    await connection.close()


async def test_queue_that_the_broker_deletes_by_itself_is_refused(
    lite: Storage,
    rabbitmq: Broker,
    connection: aio_pika.abc.AbstractConnection,
    start_gateway: StartGateway,
) -> None:
    channel = await connection.channel()
    names = [rabbitmq.name(), rabbitmq.name()]
    await channel.declare_queue(names[0], durable=True, auto_delete=True)
    await channel.declare_queue(names[1], durable=True, exclusive=True)
    gateway = await start_gateway(lite, rabbitmq.url, *names)
    await told(gateway, "is deleted when its consumer is away", "is exclusive to another connection")


async def test_what_reaches_the_delivery_limit_goes_to_the_dead_letter_exchange(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    name, dead = rabbitmq.name(), rabbitmq.name("dead")
    gateway = await start_gateway(
        lite, rabbitmq.url, name, declare="quorum", dead_letter_exchange=dead, delivery_limit=2
    )
    await consuming(gateway)
    await gateway.stop()
    await rabbitmq.publish(name, (b"crashes whoever takes it", {}))
    for _ in range(3):
        connection = await aio_pika.connect(rabbitmq.url)
        queue = await (await connection.channel()).get_queue(name)
        await eventually(lambda queue=queue: queue.get(fail=False))  # type: ignore[misc]
        await connection.close()  # as a process that dies with it
    [kept] = await rabbitmq.take(dead)
    assert kept.body == b"crashes whoever takes it"


# ---------------------------------------------------------------------------------------------- connecting


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url.replace("edda:edda", "edda:s3cret"), "ACCESS_REFUSED"),
        (lambda url: f"{url}nowhere", "vhost nowhere not found"),
        (lambda _: "amqp://edda:s3cret@127.0.0.1:1/", "127.0.0.1:1"),
        (lambda _: "amqp://edda:s3cret@nowhere.invalid/", "nowhere.invalid:5672"),
    ],
)
async def test_broker_that_cannot_be_reached_is_told_without_secrets(
    lite: Storage,
    rabbitmq: Broker,
    start_gateway: StartGateway,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[str], str],
    text: str,
) -> None:
    gateway = await start_gateway(lite, change(rabbitmq.url), "orders")
    await told(gateway, text)
    said = gateway.health().detail + "".join(str(record.__dict__) for record in caplog.records)
    assert "s3cret" not in said
    assert "edda:edda@" not in said


async def test_server_that_is_no_broker_and_never_answers_is_told(
    lite: Storage, start_gateway: StartGateway
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"amqp://a:b@127.0.0.1:{port}/"
        gateway = await start_gateway(lite, url, "orders", connect_timeout=0.2)
        await told(gateway, "did not answer within 0.2 s")
        await gateway.stop()


async def test_connection_that_is_cut_again_and_again_loses_nothing(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    async with proxied(rabbitmq.url) as proxy:
        gateway = await start_gateway(lite, proxy.url, queue, prefetch=20)
        for cut in range(5):
            await consuming(gateway)
            await rabbitmq.publish(queue, *numbered(100, f"r{cut}"))
            proxy.cut_all()
            await eventually(lambda: not gateway.health().healthy)
        await all_stored(lite, *(name for cut in range(5) for name in ids(100, f"r{cut}")))
        await eventually(lambda: gateway.health().lag == 0)
        await nothing_left(gateway, rabbitmq, queue)


@pytest.mark.parametrize(
    "where", ["gateways.rabbitmq.session.message_count", "gateways.rabbitmq.consumer.refuse_unfit"]
)
async def test_connection_whose_heartbeats_went_unanswered_is_built_anew(
    lite: Storage,
    rabbitmq: Broker,
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The client library then cancels whoever waits for an answer, who must not take that for the end."""
    waits = asyncio.Event()

    async def unanswered(asked: Any, queue: str) -> None:
        monkeypatch.undo()
        channel = await asked.channel() if isinstance(asked, Link) else asked
        waits.set()
        await channel.create_future()  # as for every answer of the broker

    monkeypatch.setattr(where, unanswered)
    queue = await rabbitmq.queue("quorum")
    gateway = await start_gateway(lite, rabbitmq.url, queue)
    await asyncio.wait_for(waits.wait(), 10)
    link = gateway._consumers[0].state.link
    assert link is not None
    await link._connection.close(asyncio.CancelledError())
    await rabbitmq.publish(queue, binary("a"))
    await all_stored(lite, "a")
    assert gateway._consumers[0].state.link is not link


async def test_channel_that_the_broker_closes_is_built_anew(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    gateway = await start_gateway(lite, rabbitmq.url, queue)
    await consuming(gateway)
    consumes = channel_that_consumes(gateway)
    await consumes.basic_ack(999)  # of a delivery that never was
    await told(gateway, "PRECONDITION_FAILED")
    await rabbitmq.publish(queue, binary("a"))
    await all_stored(lite, "a")


async def test_consumer_that_is_connected_and_gets_nothing_is_built_anew(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await rabbitmq.queue("quorum")
    gateway = await start_gateway(lite, rabbitmq.url, queue, stuck_after=0.5)
    await consuming(gateway)
    consumes = channel_that_consumes(gateway)
    await consumes.basic_cancel(next(iter(consumes.consumers)))  # without its knowledge
    assert gateway.health().healthy
    await rabbitmq.publish(queue, binary("a"))
    await all_stored(lite, "a")
    assert "1 messages wait, and none was delivered" in "".join(
        str(record.__dict__) for record in caplog.records
    )


async def test_second_consumer_of_a_single_active_queue_is_healthy_and_takes_over(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    async def look(channel: aiormq.Channel, queue: str) -> int:
        looks.append(await message_count(channel, queue))
        return looks[-1]

    monkeypatch.setattr("gateways.rabbitmq.session.message_count", look)
    queue = await rabbitmq.queue("quorum", arguments={"x-single-active-consumer": True})
    other = await rabbitmq.channel()
    await other.set_qos(1)
    taken: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    await (await other.get_queue(queue)).consume(taken.put)
    gateway = await start_gateway(lite, rabbitmq.url, queue, stuck_after=0.1, single_active=True)
    await consuming(gateway)
    link = gateway._consumers[0].state.link
    await rabbitmq.publish(queue, *numbered(3))
    await taken.get()
    await eventually(lambda: looks.count(2) > 5)  # far longer than stuck_after
    assert gateway.health().lag == 2
    assert gateway._consumers[0].state.link is link
    await other.close()
    await all_stored(lite, *ids(3))


# ---------------------------------------------------------------------------------------------- undecodable


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param(raw.content_type(b"\xff\xfe"), id="content type"),
        pytest.param(raw.headers(raw.text_header(b"\xff", b"x")), id="name of a header"),
        pytest.param(raw.timestamp(2**62), id="time"),
        pytest.param(raw.headers(raw.nested(3_000)), id="nesting"),
    ],
)
async def test_message_that_no_client_can_decode_is_kept_and_blocks_nothing(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway, properties: bytes
) -> None:
    queue = await rabbitmq.queue("quorum")
    await rabbitmq.publish(queue, binary("a-0"))
    await raw.publish_raw(rabbitmq, queue, properties, b"the body")
    await rabbitmq.publish(queue, binary("a-1"))
    gateway = await start_gateway(lite, rabbitmq.url, queue)
    await all_stored(lite, "a-0", "a-1")
    await nothing_left(gateway, rabbitmq, queue)
    [letter] = await letters(lite)
    assert (letter.raw, letter.attempts) == (b"the body", 1)
    assert "cannot be decoded" in letter.reason
    assert letter.header("edda-undecodable") == properties


async def test_routing_key_that_no_client_can_decode_is_kept(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue, exchange = await rabbitmq.queue(), await rabbitmq.exchange("fanout")
    await rabbitmq.bind(queue, exchange, "")
    key = b"\xff" * 255
    await raw.publish_raw(rabbitmq, queue, b"\x00\x00", b"x", exchange=exchange, key=key)
    await rabbitmq.publish(queue, binary("a"))
    gateway = await start_gateway(lite, rabbitmq.url, queue)
    await all_stored(lite, "a")
    await nothing_left(gateway, rabbitmq, queue)
    [letter] = await letters(lite)
    assert letter.header("edda-key") == key


# ---------------------------------------------------------------------------------------------- the server


async def test_broker_that_is_restarted_loses_nothing_and_gets_its_consumer_back(
    lite: Storage, own_rabbitmq: OwnBroker, start_gateway: StartGateway
) -> None:
    queues = [await own_rabbitmq.queue("quorum"), await own_rabbitmq.queue("classic")]
    gateway = await start_gateway(lite, own_rabbitmq.url, *queues)
    await consuming(gateway)
    await own_rabbitmq.publish(queues[0], binary("before"))
    await all_stored(lite, "before")
    await own_rabbitmq.stop_server()
    await told(gateway, f"queue {queues[0]}", f"queue {queues[1]}")
    await own_rabbitmq.start_server()
    await consuming(gateway)
    for queue in queues:
        await own_rabbitmq.publish(queue, binary(f"after-{queue}"))
    await all_stored(lite, "before", *(f"after-{queue}" for queue in queues))
    await nothing_left(gateway, own_rabbitmq, *queues)


async def test_broker_without_memory_goes_on_delivering(
    lite: Storage, own_rabbitmq: OwnBroker, start_gateway: StartGateway
) -> None:
    queue = await own_rabbitmq.queue("quorum")
    await own_rabbitmq.publish(queue, *numbered(100))
    await own_rabbitmq.control("set_vm_memory_high_watermark", "0")
    try:
        gateway = await start_gateway(lite, own_rabbitmq.url, queue)
        await all_stored(lite, *ids(100))
        await nothing_left(gateway, own_rabbitmq, queue)
    finally:
        await own_rabbitmq.control("set_vm_memory_high_watermark", "0.6")


async def test_broker_that_does_not_answer_any_more_is_noticed_from_outside(
    lite: Storage, own_rabbitmq: OwnBroker, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateways.rabbitmq.topology.ANSWER", 1.0)
    queue = await own_rabbitmq.queue("quorum")
    gateway = await start_gateway(lite, own_rabbitmq.url, queue, connect_timeout=3.0)
    await consuming(gateway)
    with own_rabbitmq.frozen():
        await told(gateway, "answer")
    await consuming(gateway)
    await own_rabbitmq.publish(queue, binary("a"))
    await all_stored(lite, "a")
