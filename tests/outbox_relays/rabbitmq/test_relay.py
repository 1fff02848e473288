"""From the outbox to RabbitMQ: rows leave when they are confirmed, each key in its order, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edda.storage.contract import Storage
from outbox_relays.rabbitmq import RabbitMQPublisher
from outbox_relays.relay import Relay
from tests.outbox_relays.conftest import QUICK
from tests.outbox_relays.given import enqueue, is_empty, keyed, reasons, row, rows
from tests.support.eventually import eventually
from tests.support.proxy import proxied
from tests.support.rabbitmq import Broker, OwnBroker

StartRelay = Callable[..., Awaitable[Relay]]


@pytest.fixture
async def start_relay() -> AsyncIterator[StartRelay]:
    """Start one, of a store and a URL; the rest is the publisher's."""
    relays: list[Relay] = []

    async def start(store: Storage, url: str, *arguments: Any, **settings: Any) -> Relay:
        relay = Relay(store, RabbitMQPublisher(url, *arguments, **settings), backoff=QUICK)
        relays.append(relay)
        await relay.start()
        return relay

    yield start
    for relay in relays:
        await relay.stop()


async def in_order(broker: Broker, queue: str, count: int) -> list[str]:
    """Ids as they stand in the queue, of repeats the first."""
    return list(dict.fromkeys(message.message_id or "" for message in await broker.take(queue, count)))


async def test_rows_leave_when_they_are_confirmed_in_the_order_of_their_key(
    store: Storage, rabbitmq: Broker, start_relay: StartRelay
) -> None:
    queue = await rabbitmq.queue("quorum")
    await enqueue(store, *keyed("abcdefgh", 50))
    await start_relay(store, rabbitmq.url, routing_key=queue)
    await eventually(lambda: is_empty(store), 20)
    taken = await in_order(rabbitmq, queue, 400)
    for key in "abcdefgh":
        assert [one for one in taken if one.startswith(key)] == [f"{key}-{number}" for number in range(50)]


async def test_row_that_no_queue_takes_waits_with_its_reason_and_goes_in_order_when_there_is_a_binding(
    store: Storage, rabbitmq: Broker, start_relay: StartRelay
) -> None:
    queue, exchange = await rabbitmq.queue(), await rabbitmq.exchange("topic")
    await rabbitmq.bind(queue, exchange, "a")
    await rabbitmq.bind(queue, exchange, "c")
    await enqueue(store, *keyed("abc", 5))
    await start_relay(store, rabbitmq.url, exchange, "{key}")

    async def only_b_is_left() -> bool:
        return set(await rows(store)) == {f"b-{number}" for number in range(5)}

    await eventually(only_b_is_left, 20)
    assert [await rabbitmq.ready(queue)] == [10]
    found = await reasons(store)
    assert f"no queue takes it: exchange '{exchange}', routing key 'b'" in (found["b-0"] or "")
    assert "dead" not in {state for state, _ in (await rows(store)).values()}
    assert (await rows(store))["b-4"][1] == 0  # nobody tried it before the first of its key
    await rabbitmq.bind(queue, exchange, "b")
    await eventually(lambda: is_empty(store), 20)
    taken = await in_order(rabbitmq, queue, 15)
    assert [one for one in taken if one.startswith("b")] == [f"b-{number}" for number in range(5)]


async def test_connection_that_is_cut_again_and_again_loses_no_row_and_keeps_the_order(
    lite: Storage, rabbitmq: Broker, start_relay: StartRelay
) -> None:
    queue = await rabbitmq.queue("quorum")
    await enqueue(lite, *keyed("abcdefgh", 100))
    async with proxied(rabbitmq.url) as proxy:
        await start_relay(lite, proxy.url, routing_key=queue, concurrency=8)
        for some in (50, 200, 400):

            async def arrived(some: int = some) -> bool:
                return await rabbitmq.ready(queue) >= some

            await eventually(arrived, 20)
            proxy.cut_all()
        await eventually(lambda: is_empty(lite), 20)
        taken = await in_order(rabbitmq, queue, await rabbitmq.ready(queue))
    for key in "abcdefgh":
        assert [one for one in taken if one.startswith(key)] == [f"{key}-{number}" for number in range(100)]


async def test_row_that_is_too_large_becomes_a_dead_letter_and_the_others_go(
    lite: Storage, rabbitmq: Broker, start_relay: StartRelay
) -> None:
    queue = await rabbitmq.queue()
    huge = row("huge", "h", data={"x": "x" * 17_000_000})
    await enqueue(lite, row("a"), huge, row("b"))
    await start_relay(lite, rabbitmq.url, routing_key=queue)

    async def only_the_dead_one_is_left() -> bool:
        return [(name, state) for name, (state, _) in (await rows(lite)).items()] == [("huge", "dead")]

    await eventually(only_the_dead_one_is_left, 20)
    assert "larger than configured max size" in ((await reasons(lite))["huge"] or "")
    assert set(await in_order(rabbitmq, queue, 2)) == {"a", "b"}


async def test_broker_that_is_away_for_a_while_gets_everything(
    lite: Storage, own_rabbitmq: OwnBroker, start_relay: StartRelay
) -> None:
    queue = await own_rabbitmq.queue("quorum")
    relay = await start_relay(lite, own_rabbitmq.url, routing_key=queue)
    await own_rabbitmq.stop_server()
    await enqueue(lite, *keyed("ab", 10))
    relay.kick()
    await eventually(lambda: relay.last_error)
    assert set(await rows(lite)) == {f"{key}-{number}" for key in "ab" for number in range(10)}
    await own_rabbitmq.start_server()
    await eventually(lambda: is_empty(lite), 20)
    taken = await in_order(own_rabbitmq, queue, 20)
    for key in "ab":
        assert [one for one in taken if one.startswith(key)] == [f"{key}-{number}" for number in range(10)]
