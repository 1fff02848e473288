"""Rows of the outbox become records: confirmed one by one, in order per key, whatever happens to the broker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError
from edda.outbox.dead_letters import dead_rows, replay
from edda.storage.contract import Storage
from gateways.kafka.record import delivery_of, read
from outbox_relays.kafka import KafkaPublisher
from outbox_relays.publisher import Confirmed, Outgoing, Permanent, Retry
from tests.outbox_relays.given import enqueue, is_empty, keyed, reasons, row, rows
from tests.outbox_relays.kafka.conftest import MakeKafkaRelay
from tests.support import containers
from tests.support.eventually import eventually
from tests.support.kafka import SASL_PASSWORD, SASL_USER, Kafka, new_name, until_it_serves
from tests.support.processes import Process

Mock = tuple[Kafka, Process]


def events_of(records: list[Any]) -> list[CloudEvent]:
    found = [read(delivery_of(record, "c")) for record in records]
    assert None not in found
    return [event for event in found if event is not None]


def by_key(records: list[Any]) -> dict[bytes | None, list[str]]:
    """Key -> ids, in the order of their partition."""
    found: dict[bytes | None, list[str]] = defaultdict(list)
    for record, event in zip(records, events_of(records), strict=True):
        found[record.key].append(event.id)
    return found


async def test_rows_become_records_with_their_ordering_key_and_in_its_order(
    lite: Storage, protocol: Kafka, relay_to: MakeKafkaRelay
) -> None:
    topic = await protocol.topic(4)
    await enqueue(lite, *keyed("abcdefgh", 60), row("alone", extensions={"myext": "é"}))
    relay = await relay_to(lite, protocol.bootstrap, topic, batch_bytes=4_000)
    await eventually(lambda: is_empty(lite))
    records = await protocol.read(topic, 481)
    assert len(records) == relay.published == 481
    found = by_key(records)
    assert found.pop(None) == ["alone"]
    assert found == {key.encode(): [f"{key}-{number}" for number in range(60)] for key in "abcdefgh"}
    assert len({record.partition for record in records}) > 1
    [alone] = [event for event in events_of(records) if event.id == "alone"]
    assert (alone.source, alone.type, alone.json(), alone.extensions["myext"]) == (
        "/shop",
        "order.paid",
        {"id": "alone"},
        "é",
    )
    assert alone.extensions["sequence"] == "00000000000000000481"


async def test_keys_meet_the_partitions_that_kafkas_own_clients_choose(
    lite: Storage, protocol: Kafka, relay_to: MakeKafkaRelay
) -> None:
    ours, theirs = await protocol.topic(4), await protocol.topic(4)
    await enqueue(lite, *keyed("abcdefgh", 1))
    await relay_to(lite, protocol.bootstrap, ours)
    await eventually(lambda: is_empty(lite))
    await protocol.send(theirs, *((key.encode(), b"", []) for key in "abcdefgh"))
    where = [{r.key: r.partition for r in await protocol.read(topic, 8)} for topic in (ours, theirs)]
    assert where[0] == where[1]


async def test_structured_mode_keys_by_extension_and_topics_by_pattern(
    lite: Storage, protocol: Kafka, relay_to: MakeKafkaRelay
) -> None:
    default, other = await protocol.topic(4), await protocol.topic(4)
    publisher = KafkaPublisher(
        protocol.bootstrap, default, mode="structured", partitionkey=True, topics={"other.*": other}
    )
    await publisher.open()
    events = [
        CloudEvent(str(at), "/s", what, b"[1]", extensions={"partitionkey": "p"})
        for at, what in enumerate(("order.paid", "order.paid", "other.one", "order.paid"))
    ]
    messages = [Outgoing(event) for event in events]
    try:
        # One call is one topic: what stands behind is sent when that is confirmed.
        assert await publisher.publish(messages) == [Confirmed()] * 2
        assert await publisher.publish(messages[2:]) == [Confirmed()]
        assert await publisher.publish(messages[3:]) == [Confirmed()]
    finally:
        await publisher.close()
    records = await protocol.read(default, 3)
    assert events_of(records) == [events[0], events[1], events[3]]
    assert {record.key for record in records} == {b"p"}
    assert records[0].headers == (("content-type", b"application/cloudevents+json"),)
    assert events_of(await protocol.read(other, 1)) == [events[2]]


async def test_record_above_our_limit_is_given_up_and_harms_no_neighbour(
    lite: Storage, protocol: Kafka, relay_to: MakeKafkaRelay
) -> None:
    topic = await protocol.topic(4)
    await enqueue(
        lite,
        *keyed("ab", 3),
        row("large", "c", data={"x": "x" * 100_000}),
        row("behind", "c"),
        *keyed("de", 3),
    )
    await relay_to(lite, protocol.bootstrap, topic, max_record_bytes=65_536)
    assert len(await protocol.read(topic, 12)) == 12
    await eventually(lambda: told(lite, "large", "max_record_bytes of the publisher"))
    assert await states(lite) == {
        "large": "dead",
        "behind": "parked",
    }


async def states(store: Storage) -> dict[str, str]:
    return {event: state for event, (state, _) in (await rows(store)).items()}


async def told(store: Storage, id: str, part: str) -> bool:
    reason = (await reasons(store))[id]
    assert reason is not None
    assert part in reason
    return True


async def test_broker_that_is_killed_keeps_the_rows_and_all_of_them_wait(
    lite: Storage, mock: Mock, relay_to: MakeKafkaRelay
) -> None:
    topic = new_name("t")
    relay = await relay_to(lite, mock[0].bootstrap, topic, publish_timeout=1.0)
    await enqueue(lite, row("first"))
    relay.kick()
    await eventually(lambda: is_empty(lite))
    mock[1].kill()
    await enqueue(lite, *keyed("ab", 5))
    relay.kick()
    await eventually(lambda: relay.last_error is not None)
    await eventually(lambda: relay._rests > 1)
    left = await rows(lite)
    assert len(left) == 10
    assert {state for state, _ in left.values()} <= {"pending", "retrying", "parked"}
    await eventually(lambda: "no connection to Kafka: 127.0.0.1:" in str(relay.last_error))


async def test_confirm_that_does_not_come_in_time_is_unknown_and_nothing_is_sent_afterwards(
    mock: Mock,
) -> None:
    topic = new_name("t")
    publisher = KafkaPublisher(mock[0].bootstrap, topic, publish_timeout=1.0)
    await publisher.open()

    def message(id: str) -> list[Outgoing]:
        return [Outgoing(CloudEvent(id, "/s", "t"), "k")]

    try:
        assert await publisher.publish(message("a")) == [Confirmed()]
        mock[1].pause()
        began = asyncio.get_running_loop().time()
        [confirm] = await publisher.publish(message("b"))
        assert isinstance(confirm, Retry)
        assert confirm.everything
        assert "unknown" in confirm.reason
        assert asyncio.get_running_loop().time() - began < 1.0
        [line] = publisher._sender._lines
        await eventually(lambda: line.closed)
        mock[1].resume()
        assert await publisher.publish(message("c")) == [Confirmed()]
    finally:
        await publisher.close()
    records = await mock[0].read(topic, 2)
    # What had left this process may have arrived; what had not, never does.
    assert by_key(records)[b"k"] in (["a", "c"], ["a", "b"], ["a", "b", "c"])


async def test_what_is_cancelled_while_it_waits_is_not_sent(protocol: Kafka) -> None:
    topic = await protocol.topic(4)
    publisher = KafkaPublisher(protocol.bootstrap, topic)
    await publisher.open()
    try:
        await publisher.publish([Outgoing(CloudEvent("a", "/s", "t"), "k")])
        task = asyncio.create_task(publisher.publish([Outgoing(CloudEvent("b", "/s", "t"), "k")]))
        await asyncio.sleep(0)  # it stands in the queue
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await publisher.publish([Outgoing(CloudEvent("c", "/s", "t"), "k")]) == [Confirmed()]
    finally:
        await publisher.close()
    assert by_key(await protocol.read(topic, 2)) == {b"k": ["a", "c"]}


# ---------------------------------------------------------------------------------------------- on a real broker


@pytest.mark.real
async def test_rows_of_every_database_arrive_once_and_in_order(
    store: Storage, kafka: Kafka, relay_to: MakeKafkaRelay
) -> None:
    topic = await kafka.topic(3)
    await enqueue(store, *keyed("abcdefgh", 100))
    await relay_to(store, kafka.bootstrap, topic)
    await eventually(lambda: is_empty(store), 20)
    found = by_key(await kafka.read(topic, 800))
    assert found == {key.encode(): [f"{key}-{number}" for number in range(100)] for key in "abcdefgh"}


@pytest.mark.real
async def test_record_above_the_topics_limit_is_found_in_its_batch_and_harms_no_neighbour(
    lite: Storage, kafka: Kafka, relay_to: MakeKafkaRelay
) -> None:
    topic = await kafka.topic(max_message_bytes="40000")
    before, after = keyed("ab", 20), keyed("cd", 20)
    await enqueue(lite, *before, row("large", "l", data={"x": "x" * 50_000}), row("behind", "l"), *after)
    await relay_to(lite, kafka.bootstrap, topic)
    found = by_key(await kafka.read(topic, 80))
    assert found == {key.encode(): [f"{key}-{number}" for number in range(20)] for key in "abcd"}
    await eventually(lambda: told(lite, "large", "max.message.bytes"))
    assert await states(lite) == {
        "large": "dead",
        "behind": "parked",
    }
    assert "50" in str((await reasons(lite))["large"])


@pytest.mark.real
async def test_record_above_the_topics_limit_goes_before_those_of_its_key_when_the_limit_is_raised(
    lite: Storage, kafka: Kafka, relay_to: MakeKafkaRelay
) -> None:
    topic = await kafka.topic(max_message_bytes="40000")
    await enqueue(
        lite, row("l-0", "l"), row("l-1", "l", data={"x": "x" * 50_000}), row("l-2", "l"), *keyed("a", 5)
    )
    relay = await relay_to(lite, kafka.bootstrap, topic)
    assert set(by_key(await kafka.read(topic, 6))) == {b"l", b"a"}
    await eventually(lambda: told(lite, "l-1", "max.message.bytes"))
    await kafka.configure(topic, max_message_bytes="100000")
    [dead] = await dead_rows(lite.engine())
    assert await replay(lite.engine(), dead.id)
    relay.kick()
    await eventually(lambda: is_empty(lite), 20)
    assert by_key(await kafka.read(topic, 8))[b"l"] == ["l-0", "l-1", "l-2"]


@pytest.mark.real
async def test_topic_that_is_missing_keeps_all_rows_until_it_is_there(
    lite: Storage, kafka: Kafka, relay_to: MakeKafkaRelay
) -> None:
    missing = new_name("missing")
    await enqueue(lite, *keyed("ab", 5))
    relay = await relay_to(lite, kafka.bootstrap, missing)
    await eventually(lambda: f"no topic '{missing}': create it" in str(relay.last_error))
    assert len(await rows(lite)) == 10
    await kafka.topic(name=missing)
    found = by_key(await kafka.read(missing, 10))
    assert found == {key.encode(): [f"{key}-{number}" for number in range(5)] for key in "ab"}
    await eventually(lambda: is_empty(lite))


@pytest.mark.real
async def test_producer_whose_numbers_the_broker_refuses_is_made_anew(kafka: Kafka) -> None:
    topic = await kafka.topic()
    publisher = KafkaPublisher(kafka.bootstrap, topic)
    await publisher.open()

    async def publish(id: str) -> Any:
        return await publisher.publish([Outgoing(CloudEvent(id, "/s", "t"), "k")])

    try:
        assert await publish("a") == [Confirmed()]
        [line] = publisher._sender._lines
        # As after a batch that was refused: a gap in the numbers of the partition.
        numbers = line._producer._txn_manager
        [place] = numbers._sequence_numbers
        numbers.increment_sequence_number(place, 5)
        [confirm] = await publish("b")
        assert isinstance(confirm, Retry)
        assert "OutOfOrderSequence" in confirm.reason
        assert await publish("b") == [Confirmed()]
    finally:
        await publisher.close()
    assert by_key(await kafka.read(topic, 2)) == {b"k": ["a", "b"]}


@pytest.mark.real
async def test_event_without_data_deletes_a_key_only_where_that_is_asked_for(kafka: Kafka) -> None:
    topic = await kafka.topic()
    for tombstones in (False, True):
        publisher = KafkaPublisher(kafka.bootstrap, topic, tombstones=tombstones)
        await publisher.open()
        await publisher.publish([Outgoing(CloudEvent("a", "/s", "t"), "k")])
        await publisher.publish([Outgoing(CloudEvent("b", "/s", "t"), None)])
        await publisher.close()
    records = await kafka.read(topic, 4)
    assert [(record.key, record.value) for record in records] == [
        (b"k", b""),
        (None, None),
        (b"k", None),
        (None, None),
    ]
    assert [event.data for event in events_of(records)] == [None] * 4


@pytest.mark.real
async def test_refused_password_keeps_all_rows_and_is_not_shown(
    lite: Storage, kafka: Kafka, relay_to: MakeKafkaRelay, caplog: pytest.LogCaptureFixture
) -> None:
    if kafka.sasl is None:
        pytest.skip("the broker in EDDA_TEST_KAFKA_URL has no port that asks for a password; leave it unset")
    topic = await kafka.topic()
    await enqueue(lite, *keyed("ab", 5))
    login: dict[str, Any] = {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_username": SASL_USER}
    refused = await relay_to(lite, kafka.sasl, topic, **login, sasl_plain_password="wr0ng-s3cret")
    await eventually(lambda: "uthentication failed" in str(refused.last_error))
    await refused.stop()
    assert len(await rows(lite)) == 10
    relay = await relay_to(lite, kafka.sasl, topic, **login, sasl_plain_password=SASL_PASSWORD)
    await eventually(lambda: is_empty(lite))
    shown = "".join(str(vars(record)) for record in caplog.records) + repr(relay._publisher)
    assert "wr0ng" not in shown
    assert SASL_PASSWORD not in shown


@pytest.mark.real
async def test_restarted_broker_is_found_again_and_keeps_what_was_confirmed(
    lite: Storage, own_kafka: Kafka, relay_to: MakeKafkaRelay
) -> None:
    topic = await own_kafka.topic(2)
    relay = await relay_to(lite, own_kafka.bootstrap, topic, publish_timeout=2.0)
    await enqueue(lite, *keyed("ab", 20))
    relay.kick()
    await eventually(lambda: is_empty(lite))
    assert own_kafka.container is not None
    restarting = asyncio.create_task(asyncio.to_thread(containers.restart, own_kafka.container))
    await enqueue(lite, *(row(f"{key}-{number}", key) for number in range(20, 60) for key in "ab"))
    relay.kick()
    await restarting
    await until_it_serves(own_kafka.bootstrap, own_kafka.container)
    await eventually(lambda: is_empty(lite), 40)
    for key, ids in by_key(await own_kafka.read(topic, 120)).items():
        assert key is not None
        # At least once: a confirm may have been lost. A consumer has (source, id) and the sequence for that.
        assert list(dict.fromkeys(ids)) == [f"{key.decode()}-{number}" for number in range(60)]


# ---------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bootstrap_servers": "kafka"}, "host:port"),
        ({"bootstrap_servers": "user:s3cret@kafka:9092"}, "host:port"),
        ({"topic": ""}, "topic=''"),
        ({"topics": {"*.paid": "x"}}, "an exact type"),
        ({"mode": "batch"}, "'binary' and 'structured'"),
        ({"max_record_bytes": 1_000}, "at least 65536"),
        ({"publish_timeout": 0}, "publish_timeout"),
        ({"security_protocol": "TLS"}, "PLAINTEXT, SSL"),
        ({"security_protocol": "SASL_SSL"}, "ssl_context"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_plain_username": "u"}, "sasl_plain_password"),
        ({"sasl_plain_password": "s3cret"}, "'SASL_SSL'"),
        ({"linger": 5}, "unknown settings"),
    ],
)
def test_configuration_that_cannot_work_is_refused_with_one_that_does(settings: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        KafkaPublisher(**{"bootstrap_servers": "kafka:9092", "topic": "orders"} | settings)
    assert "s3cret" not in str(refused.value)


def test_a_permanent_refusal_names_the_size_and_the_setting() -> None:
    publisher = KafkaPublisher("kafka:9092", "orders", max_record_bytes=65_536)
    event = CloudEvent("a", "/s", "t", b'"' + b"x" * 65_536 + b'"')
    [confirm] = asyncio.run(publisher.publish([Outgoing(event)]))
    assert isinstance(confirm, Permanent)
    assert "65" in confirm.reason
    assert "max_record_bytes" in confirm.reason
