"""An event counts once, whichever road brings it and however often; and every service that listens has it."""

from __future__ import annotations

import json

import httpx
import pytest
import sqlalchemy as sa

from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.history.codec import decode
from edda.storage import schema
from edda.workflow import workflow
from gateways.gateway import Gateway
from gateways.kafka import KafkaGateway
from gateways.rabbitmq import RabbitMQGateway
from tests.gateways.server import serving
from tests.support.databases import Database, temporary_database
from tests.support.eventually import eventually
from tests.support.kafka import Headers, Kafka, new_name
from tests.support.rabbitmq import Broker

THREE = pytest.mark.parametrize("database", ["postgresql", "mysql", "sqlite"], indirect=True)

STRUCTURED = "application/cloudevents+json"


@workflow(on="order.created", name="fulfil")
async def fulfil(ctx: WorkflowContext, order_id: str) -> str:
    """Every service of these tests runs it."""
    return order_id


def event(order_id: str) -> bytes:
    """As its sender writes it, on every road the same."""
    attributes = {"specversion": "1.0", "id": order_id, "source": "/customers", "type": "order.created"}
    return json.dumps({**attributes, "data": {"order_id": order_id}}).encode()


def record(order_id: str) -> tuple[bytes | None, bytes | None, Headers]:
    """For Kafka."""
    return order_id.encode(), event(order_id), [("content-type", STRUCTURED.encode())]


def numbered(count: int) -> list[str]:
    return [f"order-{number}" for number in range(count)]


def shop(database: Database, *gateways: Gateway, name: str = "shop") -> EddaApp:
    return EddaApp(name, database.url, workflows=[fulfil], gateways=list(gateways))


def reading(kafka: Kafka, topic: str, group: str) -> KafkaGateway:
    return KafkaGateway(kafka.bootstrap, [topic], group, session_timeout=2.0)


async def post(url: str, order_id: str) -> str:
    """What the gateway says of it."""
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/", headers={"content-type": STRUCTURED}, content=event(order_id))
    assert answer.status_code == 202, answer.text
    result: str = answer.json()["results"][0]["result"]
    return result


async def ran(app: EddaApp) -> list[str]:
    """The orders of all instances of this app, which have all completed."""
    columns = schema.instances.c
    wanted = sa.select(columns.state, columns.output, columns.output_type).where(
        columns.app == app.service_name
    )
    async with app.store.engine().connect() as connection:
        rows = (await connection.execute(wanted)).all()
    assert {row.state for row in rows} <= {"completed"}
    return sorted(decode(row.output, row.output_type) for row in rows)


async def all_ran(app: EddaApp, orders: list[str]) -> None:
    async def so() -> bool:
        found = await ran(app)
        assert found == sorted(orders), found
        return True

    await eventually(so, 20)


async def events_in(app: EddaApp) -> list[str]:
    """The ids of all accepted events, as often as they were accepted."""
    async with app.store.engine().connect() as connection:
        return sorted((await connection.execute(sa.select(schema.events.c.event_id))).scalars())


async def has_read(gateway: KafkaGateway, records: int) -> None:
    """Until it has handed in so many records, new or not."""
    await eventually(lambda: gateway.accepted == records, 20)


# ---------------------------------------------------------------------------------------------- two roads


@THREE
async def test_an_event_that_came_over_http_has_no_effect_when_it_comes_over_kafka_and_rabbitmq(
    database: Database, kafka: Kafka, rabbitmq: Broker
) -> None:
    topic, queue = await kafka.topic(), await rabbitmq.queue()
    from_kafka = reading(kafka, topic, new_name("g"))
    app = shop(database, from_kafka, RabbitMQGateway(rabbitmq.url, [queue]))
    async with serving(app) as url:
        await eventually(lambda: app.ready, 20)
        assert await post(url, "order-0") == "accepted"
        await kafka.send(topic, record("order-0"), record("order-1"))
        await has_read(from_kafka, 2)
        await rabbitmq.publish(queue, *((event(order), {}) for order in numbered(3)), content_type=STRUCTURED)
        await all_ran(app, numbered(3))
        assert await events_in(app) == numbered(3)


@THREE
async def test_an_event_that_came_over_kafka_or_rabbitmq_is_a_duplicate_over_http(
    database: Database, kafka: Kafka, rabbitmq: Broker
) -> None:
    topic, queue = await kafka.topic(), await rabbitmq.queue()
    app = shop(database, reading(kafka, topic, new_name("g")), RabbitMQGateway(rabbitmq.url, [queue]))
    async with serving(app) as url:
        await eventually(lambda: app.ready, 20)
        await kafka.send(topic, record("order-0"))
        await rabbitmq.publish(queue, (event("order-1"), {}), content_type=STRUCTURED)
        await all_ran(app, numbered(2))
        assert [await post(url, order) for order in numbered(3)] == ["duplicate", "duplicate", "accepted"]
        await all_ran(app, numbered(3))
        assert await events_in(app) == numbered(3)


# ---------------------------------------------------------------------------------------------- replay


async def forget_the_ended(app: EddaApp) -> None:
    """As a retention does it: instances that have ended, all that is theirs, and their events are gone.

    The identities of the events stay: they alone know what was here already.
    """
    ended = sa.select(schema.instances.c.id).where(schema.instances.c.state == "completed")
    async with app.store.engine().begin() as connection:
        for table in (schema.history, schema.waits):
            await connection.execute(sa.delete(table).where(table.c.instance_id.in_(ended)))
        await connection.execute(sa.delete(schema.instances).where(schema.instances.c.state == "completed"))
        await connection.execute(sa.delete(schema.events))


@THREE
@pytest.mark.parametrize("kept", [True, False], ids=["all is there", "what has ended is deleted"])
async def test_a_topic_that_is_read_from_its_beginning_again_has_no_second_effect(
    database: Database, kafka: Kafka, kept: bool
) -> None:
    topic, group = await kafka.topic(2), new_name("g")
    await kafka.send(topic, *map(record, numbered(20)))
    async with shop(database, reading(kafka, topic, group)) as app:
        await all_ran(app, numbered(20))
        if not kept:
            await forget_the_ended(app)
            assert await ran(app) == []
    await kafka.rewind(group, topic)
    assert set((await kafka.committed(group, topic)).values()) == {0}

    again, another = reading(kafka, topic, group), reading(kafka, topic, new_name("g"))
    async with shop(database, again, another) as app:
        await app.store.seek_source("kafka", group, topic, 0, 0)
        await app.store.seek_source("kafka", group, topic, 1, 0)
        await has_read(another, 20)  # a new group has the whole topic before it
        await has_read(again, 20)  # the old one was sent back, in the database and in Kafka
        await kafka.send(topic, record("new"))
        await has_read(again, 21)
        await has_read(another, 21)
        await all_ran(app, [*numbered(20), "new"] if kept else ["new"])
        assert await events_in(app) == (sorted([*numbered(20), "new"]) if kept else ["new"])


# ---------------------------------------------------------------------------------------------- two services


@THREE
async def test_two_services_with_groups_of_their_own_have_every_event_each(
    database: Database, kafka: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> None:
    topic = await kafka.topic(2)
    with temporary_database(database.kind, tmp_path_factory.mktemp("other"), is_prepared=True) as other:
        shipping = shop(database, reading(kafka, topic, new_name("shipping")), name="shipping")
        billing = shop(other, reading(kafka, topic, new_name("billing")), name="billing")
        async with shipping, billing:
            await kafka.send(topic, *map(record, numbered(20)))
            await all_ran(shipping, numbered(20))
            await all_ran(billing, numbered(20))


@THREE
async def test_two_services_in_one_database_have_every_event_each(database: Database, kafka: Kafka) -> None:
    topic = await kafka.topic(2)
    one, two = reading(kafka, topic, new_name("shipping")), reading(kafka, topic, new_name("billing"))
    async with (
        shop(database, one, name="shipping") as shipping,
        shop(database, two, name="billing") as billing,
    ):
        await kafka.send(topic, *map(record, numbered(20)))
        await has_read(one, 20)
        await has_read(two, 20)
        await all_ran(shipping, numbered(20))
        await all_ran(billing, numbered(20))
        assert await events_in(shipping) == sorted(numbered(20))  # kept once, counted once for each
