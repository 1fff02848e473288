"""From a queue to the inbox: stored before acknowledged, and nothing is lost or blocked."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError
from edda.storage.contract import Storage
from gateways.delivery import Delivery
from gateways.rabbitmq import RabbitMQGateway
from tests.gateways.rabbitmq.conftest import StartGateway
from tests.gateways.rabbitmq.given import binary, consuming, ids, letters, nothing_left, numbered
from tests.gateways.rabbitmq.raw import publish_raw
from tests.inbox.given import stored
from tests.inbox.wire import Wire
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import spawn
from tests.support.rabbitmq import Broker

URL = "amqp://user:s3cret@127.0.0.1:1/"


async def test_events_are_accepted_in_the_order_of_the_queue_and_acknowledged(
    store: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    await rabbitmq.publish(queue, *numbered(1_200))
    gateway = await start_gateway(store, rabbitmq.url, queue)

    async def all_stored() -> bool:
        return len(await stored(store)) == 1_200

    await eventually(all_stored, 30)
    assert await stored(store) == ids(1_200)
    await nothing_left(gateway, rabbitmq, queue)
    assert gateway.health().idle_seconds is not None


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_nothing_is_acknowledged_before_the_commit(
    lite: Storage,
    rabbitmq: Broker,
    start_gateway: StartGateway,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateways.rabbitmq.session._GRACE", 0.2)
    queue = await rabbitmq.queue(kind)
    wire = Wire(lite)
    wire.open.clear()
    gateway = await start_gateway(wire, rabbitmq.url, queue)
    await rabbitmq.publish(queue, *numbered(3))
    await asyncio.wait_for(wire.waiting.wait(), 10)
    await eventually(lambda: gateway.health().lag == 3)
    assert gateway.health().healthy
    # The connection ends with the batch in hand: all of it is there again.
    session = gateway._consumers[0].state
    assert session.link is not None
    await session.link.close()
    await eventually(lambda: not gateway.health().healthy)
    assert await stored(lite) == []
    wire.open.set()
    await eventually(lambda: _all(lite, 3))
    await consuming(gateway)
    await eventually(lambda: gateway.health().lag == 0)
    await nothing_left(gateway, rabbitmq, queue)
    assert await stored(lite) == ids(3)


async def _all(store: Storage, count: int) -> bool:
    return len(await stored(store)) == count


async def test_process_killed_between_commit_and_acknowledgement_gets_it_again_as_a_duplicate(
    database: Database, store: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    await rabbitmq.publish(queue, *numbered(3))
    with spawn(
        "tests.gateways.rabbitmq.programs:stop_before_acknowledging", database.url, rabbitmq.url, queue
    ) as process:
        await process.line("committed")
        first = await stored(store)  # what had arrived by then
        assert first == ids(len(first))
        process.kill()
    await eventually(lambda: _ready(rabbitmq, queue, 3), 20)
    await rabbitmq.publish(queue, binary("b"))
    gateway = await start_gateway(store, rabbitmq.url, queue)
    await eventually(lambda: _all(store, 4))
    await nothing_left(gateway, rabbitmq, queue)
    assert await stored(store) == [*ids(3), "b"]


async def _ready(broker: Broker, queue: str, count: int) -> bool:
    return await broker.ready(queue) == count


# ---------------------------------------------------------------------------------------------- poison


async def test_poison_is_kept_whole_and_its_neighbours_are_accepted(
    store: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    await rabbitmq.publish(
        queue,
        binary("a-0"),
        binary("bad", source=None),
        binary("a-1"),
        (b"\x00\xff no event", {"x-shop": 7}),
        binary("a-2", b"x" * 100_000),
        binary("a-3"),
    )
    gateway = await start_gateway(store, rabbitmq.url, queue, max_bytes=65_536)

    async def all_there() -> bool:
        return len(await letters(store)) == 3 and len(await stored(store)) == 3

    await eventually(all_there)
    await nothing_left(gateway, rabbitmq, queue)
    assert await stored(store) == ["a-0", "a-1", "a-3"]
    no_source, no_event, too_large = await letters(store)
    assert "'source' is missing" in no_source.reason
    assert (no_source.header("ce-id"), no_source.origin) == (b"bad", f"rabbitmq:{queue}")
    assert (no_event.raw, no_event.header("x-shop"), no_event.attempts) == (b"\x00\xff no event", b"7", 1)
    assert no_event.header("edda-key") == queue.encode()
    assert "no CloudEvent" in no_event.reason
    assert len(too_large.raw) == 100_000
    assert "max_bytes" in too_large.reason


async def test_how_often_poison_was_delivered_is_kept(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queues = [await rabbitmq.queue("quorum"), await rabbitmq.queue("classic")]
    for queue in queues:
        await rabbitmq.publish(queue, (b"no event", {}))
        channel = await rabbitmq.channel()
        for _ in range(2):
            message = await (await channel.get_queue(queue)).get()
            await message.nack(requeue=True)
        await eventually(lambda queue=queue: _ready(rabbitmq, queue, 1))  # type: ignore[misc]
    await start_gateway(lite, rabbitmq.url, *queues)

    async def both() -> dict[str, int] | None:
        found = {letter.origin: letter.attempts for letter in await letters(lite)}
        return found if len(found) == 2 else None

    found = await eventually(both)
    assert found == {f"rabbitmq:{queues[0]}": 3, f"rabbitmq:{queues[1]}": 2}


async def test_message_that_even_the_dead_letters_cannot_hold_stays_in_the_queue_and_blocks_nothing(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    async with lite.engine().begin() as connection:
        await connection.exec_driver_sql(
            "CREATE TRIGGER narrow BEFORE INSERT ON edda_dead_letters WHEN length(NEW.raw) > 100 "
            "BEGIN SELECT RAISE(ABORT, 'value too long'); END"
        )
    queue = await rabbitmq.queue("quorum")
    await rabbitmq.publish(queue, binary("a-0"), (b"x" * 200, {}), (b"small", {}), binary("a-1"))
    gateway = await start_gateway(lite, rabbitmq.url, queue)
    await eventually(lambda: "refuses them even as dead letters" in gateway.health().detail)
    await rabbitmq.publish(queue, binary("a-2"), binary("a-3"))
    await eventually(lambda: _all(lite, 4))
    assert await stored(lite) == ids(4)
    assert [letter.raw for letter in await letters(lite)] == [b"small"]
    await gateway.stop()
    [left] = await rabbitmq.take(queue)
    assert left.body == b"x" * 200
    assert await rabbitmq.ready(queue) == 0


# ---------------------------------------------------------------------------------------------- mapping


async def test_messages_that_are_no_events_are_mapped_with_what_the_broker_knows_of_them(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    seen: list[Delivery] = []

    def mapping(delivery: Delivery) -> CloudEvent | None:
        seen.append(delivery)
        if delivery.stable_id is None:
            return None
        if delivery.stable_id == "m-2":
            raise ValueError("no\x00 order")
        return CloudEvent(delivery.stable_id, "/legacy", "order.paid", delivery.body, "application/json")

    queue = await rabbitmq.queue()
    for name in ("m-1", "m-2"):
        await rabbitmq.publish(
            queue, (b"{}", {"x": 1}), message_id=name, correlation_id="c", content_type=None
        )
    await publish_raw(rabbitmq, queue, b"\x00\x00", b"{}")
    await rabbitmq.publish(queue, binary("a-0"))
    gateway = await start_gateway(lite, rabbitmq.url, queue, mapping=mapping)
    await eventually(lambda: _all(lite, 2))
    await nothing_left(gateway, rabbitmq, queue)
    assert await stored(lite) == ["m-1", "a-0"]
    assert [letter.reason for letter in await letters(lite)] == ["the mapping raised ValueError: no  order"]
    assert [delivery.stable_id for delivery in seen] == ["m-1", "m-2", None]
    assert (seen[0].key, seen[0].topic, dict(seen[0].headers)["amqp-correlation-id"]) == (
        queue.encode(),
        queue,
        b"c",
    )


# ---------------------------------------------------------------------------------------------- two of them


async def test_two_gateways_share_a_queue_and_each_event_counts_once(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    wires = [Wire(lite), Wire(lite)]
    gateways = [
        await start_gateway(wire, rabbitmq.url, queue, name=f"g{number}", prefetch=10)
        for number, wire in enumerate(wires)
    ]
    for gateway in gateways:
        await consuming(gateway)
    await rabbitmq.publish(queue, *numbered(300), *numbered(300))
    await eventually(lambda: sum(len(batch.events) for wire in wires for batch in wire.sent) == 600)
    for gateway in gateways:
        await gateway.stop()
    await nothing_left(gateways[0], rabbitmq, queue)
    assert sorted(await stored(lite)) == sorted(ids(300))
    assert all(sum(len(batch.events) for batch in wire.sent) >= 100 for wire in wires)


# ---------------------------------------------------------------------------------------------- the database


async def test_database_away_for_a_while_holds_what_was_delivered_and_no_more(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("quorum")
    wire = Wire(lite)
    wire.lost_requests = 10**9
    gateway = await start_gateway(wire, rabbitmq.url, queue, prefetch=20)
    await rabbitmq.publish(queue, *numbered(50))
    await eventually(lambda: len(wire.sent) >= 4)
    await eventually(lambda: _ready(rabbitmq, queue, 30))
    link = gateway._consumers[0].state.link
    wire.lost_requests = 0
    await eventually(lambda: _all(lite, 50))
    assert gateway._consumers[0].state.link is link  # nothing was requeued, nothing was built anew
    assert await stored(lite) == ids(50)
    await nothing_left(gateway, rabbitmq, queue)


async def test_commit_whose_answer_was_lost_is_one_event(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue()
    wire = Wire(lite)
    wire.lost_answers = 1
    gateway = await start_gateway(wire, rabbitmq.url, queue)
    await rabbitmq.publish(queue, *numbered(2))
    await eventually(lambda: gateway.health().lag == 0 and len(wire.sent) >= 2)
    await eventually(lambda: _all(lite, 2))
    await nothing_left(gateway, rabbitmq, queue)
    assert await stored(lite) == ids(2)


async def test_database_that_stays_away_makes_the_gateway_unhealthy_and_does_not_keep_it_from_stopping(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateways.rabbitmq.gateway._SLOW", 0.1)
    monkeypatch.setattr("gateways.rabbitmq.session._GRACE", 0.2)
    queue = await rabbitmq.queue("quorum")
    wire = Wire(lite)
    wire.lost_requests = 10**9
    gateway = await start_gateway(wire, rabbitmq.url, queue)
    await rabbitmq.publish(queue, *numbered(3))
    await eventually(lambda: "3 messages wait for the database" in gateway.health().detail)
    assert not gateway.health().healthy
    begun = time.monotonic()
    await gateway.stop()
    assert time.monotonic() - begun < 5
    await eventually(lambda: _ready(rabbitmq, queue, 3))


async def test_stop_settles_what_is_accepted_and_gives_the_rest_back(
    lite: Storage, rabbitmq: Broker, start_gateway: StartGateway
) -> None:
    queue = await rabbitmq.queue("classic")
    wire = Wire(lite)
    wire.open.clear()
    gateway = await start_gateway(wire, rabbitmq.url, queue)
    await consuming(gateway)
    await rabbitmq.publish(queue, binary("a-0"))
    await asyncio.wait_for(wire.waiting.wait(), 10)
    await rabbitmq.publish(queue, *numbered(5, "b"))
    await eventually(lambda: gateway._consumers[0].state.held == 6)
    stopping = asyncio.create_task(gateway.stop())
    await eventually(lambda: _ready_or_stopped(rabbitmq, queue, stopping))
    wire.open.set()
    await stopping
    assert await stored(lite) == ["a-0"]
    await eventually(lambda: _ready(rabbitmq, queue, 5))
    assert not gateway.health().healthy


async def _ready_or_stopped(broker: Broker, queue: str, stopping: asyncio.Task[None]) -> bool:
    channel = await broker.channel()
    found = await channel.declare_queue(queue, passive=True)
    await channel.close()
    return found.declaration_result.consumer_count == 0 and not stopping.done()


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("queues", "settings"),
    [
        ([], {}),
        ("orders", {}),
        (["orders", "orders"], {}),
        ([""], {}),
        (["amq.gen-JzTY20BRgKO-HjmUJj0wLg"], {}),
        (["x" * 256], {}),
        (["a\x00b"], {}),
        (["orders"], {"prefetch": 0}),
        (["orders"], {"prefetch": 65_536}),
        (["orders"], {"max_bytes": 1_000}),
        (["orders"], {"declare": "stream"}),
        (["orders"], {"dead_letter_exchange": "dead"}),
        (["orders"], {"delivery_limit": 5}),
        (["orders"], {"declare": "classic", "delivery_limit": 5}),
        (["orders"], {"declare": "quorum", "delivery_limit": 0}),
        (["orders"], {"declare": "quorum", "dead_letter_exchange": ""}),
        (["orders"], {"connect_timeout": 0}),
        (["orders"], {"stuck_after": 0}),
    ],
)
def test_setting_that_cannot_work_is_refused_at_once(queues: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RabbitMQGateway(URL, queues, **settings)
    assert "s3cret" not in str(caught.value)


def test_url_of_something_else_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RabbitMQGateway("http://user:s3cret@x/", ["orders"])
    assert "s3cret" not in str(caught.value)


async def test_url_that_cannot_be_read_is_refused_at_the_start_and_not_shown(
    start_gateway: StartGateway,
) -> None:
    gateway = RabbitMQGateway("amqp://user:s3cret@x:port-s3cret/", ["orders"])
    with pytest.raises(ConfigurationError) as caught:
        await gateway.start(None)  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)


def test_secrets_are_not_in_the_repr_and_the_name_tells_the_queues() -> None:
    gateway = RabbitMQGateway(URL, ["orders", "bills"])
    assert repr(gateway) == "<RabbitMQGateway rabbitmq:orders,bills>"
    assert not gateway.health().healthy
