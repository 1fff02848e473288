"""Where a partition stands is written in the database, with the events, and nowhere else counts."""

from __future__ import annotations

import pytest

from edda.inbox.accept import Inbox
from edda.storage.contract import Storage
from tests.gateways.kafka.conftest import MakeGateway
from tests.gateways.kafka.given import accepted, binary, ids, many, reads, stands_at
from tests.support.eventually import eventually
from tests.support.kafka import Kafka

pytestmark = pytest.mark.real


async def test_offsets_rewound_in_kafka_have_no_second_effect(
    store: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic(2)
    await kafka.send(topic, *many(30))
    first = await make_gateway(store, topic)
    before = await accepted(store, 30)
    await first.stop()
    await kafka.rewind(group, topic)
    assert set((await kafka.committed(group, topic)).values()) == {0}
    second = await make_gateway(store, topic)
    await kafka.send(topic, binary("new"))
    assert await accepted(store, 31) == [*before, "new"]
    assert second.accepted == 1  # the others were not even read again


async def test_topic_replayed_by_an_operator_has_no_second_effect(
    store: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, *many(30))
    gateway = await make_gateway(store, topic)
    before = await accepted(store, 30)
    # While it runs: the next batch finds another position than the one it was read from.
    await store.seek_source("kafka", group, topic, 0, 10)
    await kafka.send(topic, binary("new"))
    assert await accepted(store, 31) == [*before, "new"]
    await stands_at(Inbox(store), group, {(topic, 0): 31})
    await eventually(lambda: gateway.accepted == 30 + 21)  # read again, from where it was told


async def test_batch_whose_answer_was_lost_is_handed_in_again_and_counts_once(
    store: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    from tests.inbox.wire import Wire

    wire = Wire(store)
    topic = await kafka.topic()
    inbox = Inbox(wire, patience=0.01)  # type: ignore[arg-type]  # a wire passes on all that it has not
    gateway = await make_gateway(inbox, topic)
    await reads(gateway, 1)
    wire.lost_answers = 2
    await kafka.send(topic, *many(20))
    await kafka.send(topic, *many(20, "f"))
    assert len(set(await accepted(store, 40))) == 40
    assert wire.lost_answers == 0


async def test_a_new_group_begins_where_it_has_committed_in_kafka(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, *many(10))
    await commit(kafka, group, topic, 7)
    await make_gateway(lite, topic)
    assert await accepted(lite, 3) == ["e-7", "e-8", "e-9"]


async def commit(kafka: Kafka, group: str, topic: str, offset: int) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.commit({TopicPartition(topic, 0): offset})
    await consumer.stop()


async def test_begun_at_the_latest_record_a_restart_before_the_first_one_skips_nothing(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, binary("old"))
    gateway = await make_gateway(lite, topic, start="latest")
    await reads(gateway, 1)
    await gateway.stop()
    await kafka.send(topic, binary("while it was away"))
    await make_gateway(lite, topic, start="latest")
    assert await accepted(lite, 1) == ["while it was away"]


async def test_partition_added_later_is_read_from_its_first_record(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    gateway = await make_gateway(lite, topic, start="latest")
    await reads(gateway, 1)
    await gateway.stop()
    await kafka.add_partitions(topic, 2)
    await kafka.send(topic, binary("first of it"), partition=1)
    await make_gateway(lite, topic, start="latest")
    assert await accepted(lite, 1) == ["first of it"]


async def test_offset_that_is_gone_stops_its_partition_until_an_operator_says_where_to_go_on(
    store: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic(2)
    await kafka.send(topic, *many(5, "a"), partition=0)
    await kafka.send(topic, *many(5, "b"), partition=1)
    first = await make_gateway(store, topic)
    await accepted(store, 10)
    await first.stop()
    await kafka.send(topic, *many(5, "lost"), partition=0)
    await kafka.send(topic, binary("kept"), partition=0)
    await kafka.delete_records(topic, 9)

    gateway = await make_gateway(store, topic)
    await eventually(lambda: "is stopped" in gateway.health().detail)
    await kafka.send(topic, binary("b-5"), partition=1)
    await accepted(store, 11)  # the other partition goes on
    health = gateway.health()
    assert not health.healthy
    assert f"edda positions seek {group} {topic} 0 OFFSET" in health.detail
    assert "Kafka has 9 up to 11" in health.detail
    await store.seek_source("kafka", group, topic, 0, 9)
    assert (await accepted(store, 13))[-2:] == ["lost-4", "kept"]
    await eventually(lambda: gateway.health().healthy)


async def test_equal_topics_of_two_clusters_have_positions_apart(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, binary("a"))
    await make_gateway(lite, topic, cluster="one")
    await accepted(lite, 1)
    second = await make_gateway(lite, topic, cluster="two", group_id=group + "-2")
    await eventually(lambda: second.accepted == 1)  # read there, too; and an event is accepted once
    assert await ids(lite) == ["a"]
    assert await Inbox(lite).positions("one", group) == {(topic, 0): 1}
    assert await Inbox(lite).positions("two", group + "-2") == {(topic, 0): 1}
