"""What each answer of the broker means, and what is sent."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import aio_pika
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError
from gateways.rabbitmq.reading import delivery_of, reader
from outbox_relays.publisher import Confirmed, Outgoing, Permanent, Retry
from outbox_relays.rabbitmq import RabbitMQPublisher
from tests.outbox_relays.rabbitmq.given import EVENT, event, opened, publish
from tests.support.eventually import eventually
from tests.support.proxy import proxied
from tests.support.rabbitmq import Broker, OwnBroker

URL = "amqp://user:s3cret@127.0.0.1:1/"


def read(message: aio_pika.abc.AbstractIncomingMessage) -> CloudEvent | None:
    """As our own gateway reads it."""
    properties = Basic.Properties(headers=message.headers, content_type=message.content_type or "")
    deliver = Basic.Deliver("", 1, False, "", "")
    found = DeliveredMessage(deliver, ContentHeader(properties=properties), message.body, None)  # type: ignore[arg-type]
    return reader(found)(delivery_of("q", found))


# ---------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_event_is_in_the_queue_when_it_is_confirmed_and_read_as_the_same_event(
    rabbitmq: Broker, mode: str
) -> None:
    queue = await rabbitmq.queue("quorum")
    sent = event(
        'i d%"é😀', data=b"\x00\xff", datacontenttype="image/png", time="2026-01-01T00:00:00.123456789Z"
    )
    async with opened(rabbitmq.url, routing_key=queue, mode=mode) as publisher:
        assert await publish(publisher, sent) == Confirmed()
    assert await rabbitmq.ready(queue) == 1
    [message] = await rabbitmq.take(queue)
    assert read(message) == sent
    assert (message.message_id, message.delivery_mode) == (sent.id, 2)
    expected = "image/png" if mode == "binary" else "application/cloudevents+json"
    assert message.content_type == expected


async def test_attributes_are_headers_of_text_as_they_are(rabbitmq: Broker) -> None:
    queue = await rabbitmq.queue()
    sent = event(subject="Grüße €", extensions={"flag": True, "number": -5, "percent": "%41"})
    async with opened(rabbitmq.url, routing_key=queue) as publisher:
        assert await publish(publisher, sent) == Confirmed()
    [message] = await rabbitmq.take(queue)
    assert message.headers == {
        "ce-specversion": "1.0",
        "ce-id": "a-1",
        "ce-source": "/shop",
        "ce-type": "order.paid",
        "ce-subject": "Grüße €",
        "ce-flag": "true",
        "ce-number": "-5",
        "ce-percent": "%41",
    }
    assert message.content_type == "application/json"


@pytest.mark.parametrize(
    ("routing_key", "expected"),
    [
        (None, "order.paid"),
        ("fixed", "fixed"),
        ("{type}.{subject}.{key}", "order.paid.s.k"),
        ("a{{b}}", "a{b}"),
        (lambda event: f"f.{event.id}", "f.a-1"),
    ],
)
async def test_routing_key_is_of_the_event(rabbitmq: Broker, routing_key: Any, expected: str) -> None:
    queue, exchange = await rabbitmq.queue(), await rabbitmq.exchange("topic")
    await rabbitmq.bind(queue, exchange, "#")
    async with opened(rabbitmq.url, exchange, routing_key) as publisher:
        assert await publish(publisher, event(subject="s"), "k") == Confirmed()
    [message] = await rabbitmq.take(queue)
    assert message.routing_key == expected


async def test_subject_and_key_that_are_not_there_are_empty(rabbitmq: Broker) -> None:
    queue, exchange = await rabbitmq.queue(), await rabbitmq.exchange("topic")
    await rabbitmq.bind(queue, exchange, "#")
    async with opened(rabbitmq.url, exchange, "x.{subject}{key}") as publisher:
        assert await publish(publisher, event()) == Confirmed()
    [message] = await rabbitmq.take(queue)
    assert message.routing_key == "x."


async def test_confirms_of_many_are_waited_for_together(rabbitmq: Broker) -> None:
    queue = await rabbitmq.queue("quorum")
    async with opened(rabbitmq.url, routing_key=queue) as publisher:
        confirms = await asyncio.gather(*(publish(publisher, event(f"a-{n}")) for n in range(500)))
    assert confirms == [Confirmed()] * 500
    assert await rabbitmq.ready(queue) == 500


# ---------------------------------------------------------------------------------------------- answers


async def test_what_no_queue_takes_is_retried_with_its_reason_and_disturbs_nobody(rabbitmq: Broker) -> None:
    queue, exchange = await rabbitmq.queue(), await rabbitmq.exchange("topic")
    await rabbitmq.bind(queue, exchange, "good")
    async with opened(rabbitmq.url, exchange, lambda event: event.subject) as publisher:
        events = [event(f"a-{n}", subject="good" if n % 2 else "lost") for n in range(20)]
        confirms = await asyncio.gather(*(publish(publisher, each) for each in events))
    lost = Retry(f"no queue takes it: exchange {exchange!r}, routing key 'lost' (NO_ROUTE)")
    assert confirms == [lost, Confirmed()] * 10
    assert await rabbitmq.ready(queue) == 10


async def test_same_id_in_flight_twice_never_gets_the_others_answer(rabbitmq: Broker) -> None:
    """The client library matches a returned message by its id: the lost one of two would be called confirmed."""
    queue, exchange = await rabbitmq.queue(), await rabbitmq.exchange("topic")
    await rabbitmq.bind(queue, exchange, "good")
    async with opened(rabbitmq.url, exchange, lambda event: event.subject) as publisher:
        for _ in range(20):
            lost, good = await asyncio.gather(
                publish(publisher, event(subject="lost")),
                publish(publisher, event(source="/other", subject="good")),
            )
            assert isinstance(lost, Retry)
            assert good == Confirmed()
    assert await rabbitmq.ready(queue) == 20


async def test_refusal_of_a_full_queue_is_retried(rabbitmq: Broker) -> None:
    queue = await rabbitmq.queue("classic", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    async with opened(rabbitmq.url, routing_key=queue) as publisher:
        assert await publish(publisher, event("a")) == Confirmed()
        confirm = await publish(publisher, event("b"))
        assert isinstance(confirm, Retry)
        assert "did not take it" in confirm.reason
        assert not confirm.everything
        await rabbitmq.take(queue)
        assert await publish(publisher, event("b")) == Confirmed()


async def test_missing_exchange_rests_the_destination_until_it_is_there(rabbitmq: Broker) -> None:
    exchange = rabbitmq.name()
    async with opened(rabbitmq.url, exchange) as publisher:
        confirms = await asyncio.gather(*(publish(publisher, event(f"a-{n}")) for n in range(10)))
        for confirm in confirms:
            assert isinstance(confirm, Retry)
        assert any(
            isinstance(confirm, Retry)
            and confirm.everything
            and f"no exchange '{exchange}'" in confirm.reason
            for confirm in confirms
        )
        await rabbitmq.exchange("topic", exchange)
        queue = await rabbitmq.queue()
        await rabbitmq.bind(queue, exchange, "#")
        assert await publish(publisher) == Confirmed()


async def test_message_that_the_broker_will_never_take_is_permanent_and_its_neighbours_are_retried(
    rabbitmq: Broker,
) -> None:
    queue = await rabbitmq.queue()
    async with opened(rabbitmq.url, routing_key=queue, concurrency=4) as publisher:
        events = [event("a"), event("huge", data=b"x" * 17_000_000), event("b")]
        first, huge, second = await asyncio.gather(*(publish(publisher, each) for each in events))
        assert isinstance(huge, Permanent)
        assert "larger than configured max size" in huge.reason
        for confirm in (first, second):
            assert confirm == Confirmed() or isinstance(confirm, Retry)
        assert await publish(publisher) == Confirmed()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"subject": "x" * 200_000}, "mode='structured'"),
        ({"subject": "é" * 100_000}, "mode='structured'"),
        ({"extensions": {"x" * 300: "1"}}, "name of more than 252 bytes"),
        ({"datacontenttype": "text/plain; x=" + "y" * 300}, "content type has 314 bytes"),
        ({"type": "t" * 250}, "routing key has 256 bytes"),
    ],
)
async def test_what_the_protocol_cannot_carry_is_permanent_and_leaves_the_connection_alone(
    rabbitmq: Broker, changes: dict[str, Any], text: str
) -> None:
    exchange = await rabbitmq.exchange("fanout")
    await rabbitmq.bind(await rabbitmq.queue(), exchange, "")
    async with opened(rabbitmq.url, exchange, "prefix{type}") as publisher:
        assert await publish(publisher) == Confirmed()
        sender = publisher._sender
        confirm = await publish(publisher, event(**changes))
        assert isinstance(confirm, Permanent)
        assert text in confirm.reason
        assert publisher._sender is sender


async def test_largest_headers_that_are_let_through_are_taken(rabbitmq: Broker) -> None:
    queue = await rabbitmq.queue()
    async with opened(rabbitmq.url, routing_key=queue) as publisher:
        assert await publish(publisher) == Confirmed()
        sender = publisher._sender
        assert sender is not None
        confirm = await publish(publisher, event("b", subject="x" * (sender.largest_header - 200)))
        assert confirm == Confirmed()
        long_id = "i" * 300
        assert await publish(publisher, event(long_id)) == Confirmed()
    messages = await rabbitmq.take(queue, 3)
    assert [len(message.message_id or "") for message in messages] == [3, 1, 64]
    assert messages[2].headers["ce-id"] == long_id


async def test_routing_key_function_that_raises_is_retried_and_stops_nobody(rabbitmq: Broker) -> None:
    async with opened(rabbitmq.url, "amq.topic", lambda event: event.nothing) as publisher:
        confirm = await publish(publisher)
    assert isinstance(confirm, Retry)
    assert not confirm.everything
    assert "routing_key raised AttributeError" in confirm.reason


# ---------------------------------------------------------------------------------------------- the connection


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("edda:s3cret@", "ACCESS_REFUSED"),
        ("edda:s3cret@127.0.0.1:1/", "127.0.0.1:1"),
        ("edda:s3cret@nowhere.invalid/", "nowhere.invalid"),
    ],
)
async def test_broker_that_cannot_be_reached_rests_the_destination_and_no_secret_is_told(
    rabbitmq: Broker, change: str, text: str
) -> None:
    url = f"amqp://{change}" if "/" in change else re.sub("//.*@", f"//{change}", rabbitmq.url)
    async with opened(url, routing_key="q") as publisher:
        confirms = await asyncio.gather(*(publish(publisher, event(f"a-{n}")) for n in range(5)))
    for confirm in confirms:
        assert isinstance(confirm, Retry)
        assert confirm.everything
        assert text in confirm.reason
        assert "s3cret" not in confirm.reason


async def test_server_that_never_answers_takes_no_longer_than_the_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"amqp://a:b@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with opened(url, routing_key="q", publish_timeout=1.0) as publisher:
            begun = time.monotonic()
            confirm = await publish(publisher)
            assert time.monotonic() - begun < 1.0
    assert isinstance(confirm, Retry)
    assert confirm.everything


async def test_connection_cut_with_messages_in_flight_is_unknown_and_the_next_ones_go(
    rabbitmq: Broker,
) -> None:
    queue = await rabbitmq.queue("quorum")
    async with proxied(rabbitmq.url) as proxy, opened(proxy.url, routing_key=queue) as publisher:
        assert await publish(publisher) == Confirmed()
        proxy.cut_request(b"a-7")  # never reaches the broker
        confirms = await asyncio.gather(*(publish(publisher, event(f"a-{n}")) for n in range(20)))
        unknown = [confirm for confirm in confirms if confirm != Confirmed()]
        assert unknown
        for confirm in unknown:
            assert isinstance(confirm, Retry)
            assert confirm.everything
        assert await publish(publisher, event("next")) == Confirmed()


async def test_caller_that_is_cancelled_is_cancelled_and_the_next_ones_go(rabbitmq: Broker) -> None:
    queue = await rabbitmq.queue()
    async with opened(rabbitmq.url, routing_key=queue) as publisher:
        task = asyncio.create_task(publish(publisher))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await publish(publisher) == Confirmed()


async def test_closing_with_messages_in_flight_ends_them_as_unknown(own_rabbitmq: OwnBroker) -> None:
    queue = await own_rabbitmq.queue()
    publisher = RabbitMQPublisher(own_rabbitmq.url, routing_key=queue)
    await publisher.open()
    assert await publish(publisher) == Confirmed()
    with own_rabbitmq.frozen():
        task = asyncio.create_task(publish(publisher, event("b")))
        await eventually(lambda: publisher._sender is not None and publisher._sender._in_flight)
        await publisher.close()
        confirm = await task
    assert isinstance(confirm, Retry)


async def test_broker_without_memory_rests_the_destination_within_the_timeout_and_then_takes_all(
    own_rabbitmq: OwnBroker,
) -> None:
    queue = await own_rabbitmq.queue("quorum")
    async with opened(own_rabbitmq.url, routing_key=queue, publish_timeout=1.0) as publisher:
        assert await publish(publisher) == Confirmed()
        await own_rabbitmq.control("set_vm_memory_high_watermark", "0")
        try:
            begun = time.monotonic()
            waits = asyncio.create_task(publish(publisher, event("b")))
            await eventually(lambda: publisher._sender is not None and publisher._sender.blocked)
            async with asyncio.timeout(0.6):  # nothing more is sent into it
                second = await publish(publisher, event("c"))
            first = await waits
            assert time.monotonic() - begun < 3.0
            # The next connection, too: it is blocked by its first message.
            third = await publish(publisher, event("b"))
        finally:
            await own_rabbitmq.control("set_vm_memory_high_watermark", "0.6")
        for confirm in (first, second, third):
            assert isinstance(confirm, Retry)
            assert confirm.everything
            assert "takes no messages now" in confirm.reason
        await eventually(lambda: _confirmed(publisher))
    taken = {message.message_id for message in await own_rabbitmq.take(queue, 2)}
    assert taken == {"a-1", "b"}


async def _confirmed(publisher: RabbitMQPublisher) -> bool:
    return await publish(publisher, event("b")) == Confirmed()


async def test_confirmed_messages_survive_a_restart_of_the_broker(own_rabbitmq: OwnBroker) -> None:
    queues = [await own_rabbitmq.queue("quorum"), await own_rabbitmq.queue("classic")]
    async with opened(own_rabbitmq.url, "", lambda event: event.subject) as publisher:
        for queue in queues:
            assert await publish(publisher, event(subject=queue)) == Confirmed()
        await own_rabbitmq.stop_server()
        confirm = await publish(publisher, event("b", subject=queues[0]))
        assert isinstance(confirm, Retry)
        assert confirm.everything
        await own_rabbitmq.start_server()
        for queue in queues:
            assert [message.message_id for message in await own_rabbitmq.take(queue)] == ["a-1"]
        assert await publish(publisher, event("b", subject=queues[0])) == Confirmed()


# ---------------------------------------------------------------------------------------------- declared


async def test_exchange_and_queue_are_made_where_that_is_asked_for(rabbitmq: Broker) -> None:
    queue, exchange = rabbitmq.name(), rabbitmq.name()
    async with opened(rabbitmq.url, routing_key=queue, declare="quorum") as publisher:
        assert await publish(publisher) == Confirmed()
    async with opened(rabbitmq.url, exchange, declare="topic") as publisher:
        assert isinstance(await publish(publisher), Retry)  # it is there; nothing is bound
        await rabbitmq.bind(queue, exchange, "order.*")
        assert await publish(publisher) == Confirmed()
    assert await rabbitmq.ready(queue) == 2


async def test_what_was_declared_otherwise_is_told_with_what_to_do(rabbitmq: Broker) -> None:
    queue, exchange = await rabbitmq.queue("classic"), await rabbitmq.exchange("topic")
    async with opened(rabbitmq.url, routing_key=queue, declare="quorum") as publisher:
        confirm = await publish(publisher)
        assert isinstance(confirm, Retry)
        assert "declare=None takes it as it is" in confirm.reason
    async with opened(rabbitmq.url, exchange, declare="fanout") as publisher:
        confirm = await publish(publisher)
        assert isinstance(confirm, Retry)
        assert confirm.everything


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (("", ""), {}),
        (("x" * 256,), {}),
        (("x", "{id}"), {}),
        (("x", "{"), {}),
        (("x", "{type.__class__}"), {}),
        (("x",), {"mode": "batch"}),
        (("x",), {"types": "order.*"}),
        (("x",), {"destination": ""}),
        (("x",), {"publish_timeout": 0}),
        (("x",), {"concurrency": 0}),
        (("x",), {"declare": "quorum"}),
        (("", "q"), {"declare": "topic"}),
        (("", "{type}"), {"declare": "quorum"}),
        (("", lambda _: "q"), {"declare": "quorum"}),
    ],
)
def test_setting_that_cannot_work_is_refused_at_once(
    arguments: tuple[Any, ...], settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RabbitMQPublisher(URL, *arguments, **settings)
    assert "s3cret" not in str(caught.value)


async def test_url_that_is_none_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RabbitMQPublisher("http://user:s3cret@x/", "x")
    assert "s3cret" not in str(caught.value)
    publisher = RabbitMQPublisher("amqp://user:s3cret@x:port-s3cret/", "x")
    with pytest.raises(ConfigurationError) as caught:
        await publisher.open()
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(publisher)


def test_it_takes_the_types_it_was_given() -> None:
    publisher = RabbitMQPublisher(URL, "x", types=["order.*"])
    assert (publisher.takes("order.paid"), publisher.takes("bill.paid")) == (True, False)


async def test_messages_of_one_call_are_sent_one_by_one(rabbitmq: Broker) -> None:
    queue = await rabbitmq.queue()
    async with opened(rabbitmq.url, routing_key=queue) as publisher:
        assert publisher.lane_batch == 1
        assert await publisher.publish([Outgoing(EVENT), Outgoing(event("b"))]) == [Confirmed()] * 2
