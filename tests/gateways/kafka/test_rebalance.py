"""Partitions change hands, in peace and by force, and every record has its effect once."""

from __future__ import annotations

import pytest

from edda.inbox.accept import Inbox
from edda.storage.contract import Storage
from tests.gateways.kafka.conftest import MakeGateway
from tests.gateways.kafka.given import accepted, ids, many, membership, stands_at
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.kafka import Kafka
from tests.support.processes import spawn

pytestmark = pytest.mark.real

PROGRAM = "tests.gateways.kafka.programs:gateway"


async def test_gateways_that_come_and_go_lose_and_double_nothing(
    store: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic(6)
    gateways = [await make_gateway(store, topic)]
    sent = 0
    for step in ("two", "three", "one less", "two less"):
        await kafka.send(topic, *many(150, step))
        if step in {"two", "three"}:
            gateways.append(await make_gateway(store, topic))
        else:
            await gateways[step == "two less"].stop()
        await kafka.send(topic, *many(150, f"{step}, changed"))
        sent += 300
    found = await accepted(store, sent)
    assert len(set(found)) == sent
    # Each record's step of its position was made once: what a gateway held when it lost a partition left no trace.
    assert sum(gateway.accepted for gateway in gateways) == sent
    positions = await Inbox(store).positions("kafka", group)
    assert sum(positions.values()) == sent
    for key in range(10):  # in order of the partition, whoever reads it
        for step in ("two", "three", "one less", "two less"):
            numbers = [
                int(one.split("-")[1])
                for one in found
                if one.startswith(f"{step}-") and one.endswith(str(key))
            ]
            assert numbers == sorted(numbers)


async def test_batch_of_a_frozen_gateway_comes_too_late_and_leaves_no_trace(
    store: Storage, database: Database, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, *many(50))
    with spawn(PROGRAM, database.url, kafka.bootstrap, topic, group, "before") as zombie:
        await zombie.line("^frozen$")
        await make_gateway(store, topic)  # takes over when the group misses the frozen one
        before = await accepted(store, 50)
        zombie.resume()
        await zombie.line("accepted 50, stale 1")
        assert await ids(store) == before
        # Whoever of them has the partition now, it goes on.
        await kafka.send(topic, *many(10, "new"))
        await accepted(store, 60)
        await stands_at(Inbox(store), group, {(topic, 0): 60})


async def test_gateway_killed_between_accept_and_offset_commit_loses_and_doubles_nothing(
    lite: Storage, sqlite_database: Database, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, *many(50))
    with spawn(PROGRAM, sqlite_database.url, kafka.bootstrap, topic, group, "after") as victim:
        await victim.line("^frozen$")
        victim.kill()
    before = await accepted(lite, 50)
    assert await kafka.committed(group, topic) == {}
    gateway = await make_gateway(lite, topic)
    await kafka.send(topic, *many(10, "new"))
    assert (await accepted(lite, 60))[:50] == before
    assert gateway.accepted == 10  # the position was in the transaction: nothing was even read twice


async def test_gateway_killed_before_its_accept_loses_nothing(
    lite: Storage, sqlite_database: Database, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic()
    await kafka.send(topic, *many(50))
    with spawn(PROGRAM, sqlite_database.url, kafka.bootstrap, topic, group, "before") as victim:
        await victim.line("^frozen$")
        victim.kill()
    assert await ids(lite) == []
    await make_gateway(lite, topic)
    assert len(set(await accepted(lite, 50))) == 50


async def test_a_second_gateway_takes_its_share_and_gives_it_back(
    lite: Storage, kafka: Kafka, make_gateway: MakeGateway, group: str
) -> None:
    topic = await kafka.topic(4)
    first = await make_gateway(lite, topic)
    second = await make_gateway(lite, topic)
    await eventually(
        lambda: all("reads 2 partitions" in gateway.health().detail for gateway in (first, second)), 20
    )
    await second.stop()
    await membership(kafka, group, 1)
    await eventually(lambda: "reads 4 partitions" in first.health().detail, 20)
