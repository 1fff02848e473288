"""Records become accepted events or dead letters, and none harms another."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from edda.cloudevent import CloudEvent
from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.schema import events
from gateways.delivery import Delivery
from tests.gateways.kafka.conftest import MakeGateway
from tests.gateways.kafka.given import accepted, binary, ids, letters, many, membership, reads, stands_at
from tests.gateways.kafka.test_record import NO_EVENT, RUBBISH
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.kafka import Kafka, mock_cluster, new_name

pytestmark = pytest.mark.real


async def test_rubbish_is_kept_whole_as_dead_letters_and_harms_no_neighbour(
    store: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    rubbish = [record for record, _ in RUBBISH.values()] + [
        record
        for what, record in NO_EVENT.items()
        if what != "nothing at all"  # which aiokafka does not send
    ]
    mixed = [one for number, record in enumerate(rubbish) for one in (record, binary(f"e-{number}"))]
    await kafka.send(topic, *mixed)
    await make_gateway(store, topic)
    assert await accepted(store, len(rubbish)) == [f"e-{number}" for number in range(len(rubbish))]
    await stands_at(Inbox(store), group, {(topic, 0): len(mixed)})
    kept = await letters(store)
    assert [one.origin for one in kept] == [f"kafka:kafka/{topic}/0@{at}" for at in range(0, len(mixed), 2)]
    for one, (key, body, headers) in zip(kept, rubbish, strict=True):
        assert one.raw == (body or b"")
        assert one.headers == ([("edda-key", key)] if key is not None else []) + headers
        assert one.reason


async def test_record_too_large_is_a_dead_letter_and_one_of_64_kib_is_taken(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    topic = await kafka.topic()
    fits = b'"' + b"x" * (65_536 - 2 - sum(len(n) + len(v) for n, v in binary("fits")[2])) + b'"'
    await kafka.send(topic, binary("large", body=b"x" * 70_000), binary("fits", body=fits))
    await make_gateway(lite, topic, max_bytes=65_536)
    assert await accepted(lite, 1) == ["fits"]
    [kept] = await letters(lite)
    assert len(kept.raw) == 70_000
    assert "at most 65536 are taken (max_bytes)" in kept.reason


async def test_record_that_is_no_event_is_mapped_with_an_id_that_redelivery_does_not_change(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    def mapping(delivery: Delivery) -> CloudEvent | None:
        if delivery.body is None:
            return None  # a tombstone is of no interest
        assert delivery.stable_id is not None
        return CloudEvent(delivery.stable_id, "/legacy", f"{delivery.topic}.row", delivery.body)

    topic = await kafka.topic()
    await kafka.send(topic, (b"k", b"[1]", []), (b"k", None, []), (b"k", b"[2]", []))
    await make_gateway(lite, topic, mapping=mapping, cluster="eu")
    assert await accepted(lite, 2) == [f"eu/{topic}/0/0", f"eu/{topic}/0/2"]
    await lite.seek_source("eu", group, topic, 0, 0)
    await kafka.send(topic, (b"k", b"[3]", []))
    assert await accepted(lite, 3) == [f"eu/{topic}/0/{at}" for at in (0, 2, 3)]
    assert await letters(lite) == []


async def test_the_records_key_is_no_part_of_the_event(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, binary("a", b"\xff\x00"))
    await make_gateway(lite, topic)
    await accepted(lite, 1)
    async with lite.engine().connect() as connection:
        row = (await connection.execute(sa.select(events))).one()
    assert b"partitionkey" not in row.attributes


async def test_two_groups_have_every_event_each(
    kafka: Kafka, make_gateway: MakeGateway, lite: Storage, postgresql_database: Database
) -> None:
    topic = await kafka.topic(2)
    await kafka.send(topic, *many(30))
    other = open_store(postgresql_database.url)
    await other.open()
    first = await make_gateway(lite, topic)
    second = await make_gateway(other, topic, group_id=new_name("other"))
    try:
        assert sorted(await accepted(lite, 30)) == sorted(await accepted(other, 30))
    finally:
        await first.stop()
        await second.stop()
        await other.close()


async def test_what_a_transaction_has_taken_back_is_never_seen(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()

    async def send(producer: Any, id: str) -> None:
        key, body, headers = binary(id)
        await producer.send(topic, body, key, headers=headers)

    async with kafka.producer(transactional_id=new_name("tx")) as producer:
        for name, keep in (("kept", True), ("dropped", False)):
            await producer.begin_transaction()
            await send(producer, name)
            await (producer.commit_transaction() if keep else producer.abort_transaction())
    gateway = await make_gateway(lite, topic, stall_after=1.0)
    assert await accepted(lite, 1) == ["kept"]
    # The transactions' own marks have offsets, too: they are no lag, and nothing stalls at them.
    await eventually(lambda: gateway.health().lag == 0)
    await kafka.send(topic, binary("after"))
    assert await accepted(lite, 2) == ["kept", "after"]
    await stands_at(Inbox(lite), group, {(topic, 0): 5})
    assert gateway.rebuilt == 0


class _Name(str):
    """A header's name that is no text."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


async def test_record_whose_headers_name_is_no_text_is_read_all_the_same(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

    topic = await kafka.topic()
    strange = (_Name("x"), b"1")
    first, second, third, fourth = map(binary, "abcd")
    async with kafka.producer() as producer:
        for records in (
            [first, (None, b"{}", [*second[2], strange]), third],
            [fourth, (b"k", b"no event", [strange])],
        ):
            batch = producer.create_batch()
            batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 100_000)
            for key, body, headers in records:
                batch.append(timestamp=1, key=key, value=body, headers=headers)
            await (await producer.send_batch(batch, topic, partition=0))
    await make_gateway(lite, topic)
    assert await accepted(lite, 4) == ["a", "b", "c", "d"]
    await stands_at(Inbox(lite), group, {(topic, 0): 5})
    [kept] = await letters(lite)
    assert kept.headers == [("edda-key", b"k"), ("\\xff\\xfe", b"1")]


async def test_stopping_leaves_the_group_and_tells_kafka_how_far_it_came(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic(2)
    await kafka.send(topic, *many(25))
    gateway = await make_gateway(lite, topic)
    await accepted(lite, 25)
    await gateway.stop()
    positions = await Inbox(lite).positions("kafka", group)
    assert await kafka.committed(group, topic) == {partition: at for (_, partition), at in positions.items()}
    await membership(kafka, group, 0)
    assert gateway.health().detail == "not started"


async def test_a_gateway_reads_from_any_broker_that_speaks_kafka(
    lite: Storage, make_gateway: MakeGateway
) -> None:
    with mock_cluster() as (mock, _):  # whose members must have the patience of its three seconds
        topic = new_name("t")
        await mock.send(topic, *many(20))
        gateway = await make_gateway(lite, topic, bootstrap_servers=mock.bootstrap, session_timeout=10.0)
        await reads(gateway, 4)
        assert len(await accepted(lite, 20)) == 20
        await gateway.stop()
    assert len(await ids(lite)) == 20
