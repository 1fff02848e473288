"""Start or signal: one run per key lives at a time, and no event of the key is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from edda.activity import activity
from edda.app import EddaApp
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.storage.rows import Verdict
from edda.waits import wait_event
from edda.workflow import Workflow, workflow
from tests.inbox.given import event
from tests.support.databases import Database
from tests.support.eventually import eventually


@dataclass
class Shop:
    """What the workflows of a test did."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    began: list[tuple[str, int]] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)
    living: dict[str, int] = field(default_factory=dict)
    most_living: int = 0


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def packing(shop: Shop) -> Workflow[..., None]:
    @activity
    async def pack(ctx: WorkflowContext, order_id: str, n: int) -> None:
        shop.began.append((order_id, n))
        shop.living[order_id] = shop.living.get(order_id, 0) + 1
        shop.most_living = max(shop.most_living, shop.living[order_id])
        await shop.gate.wait()
        shop.living[order_id] -= 1
        shop.ended.append((order_id, n))

    @workflow(on="order.*", key="data.order_id", name="packing")
    async def packing(ctx: WorkflowContext, order_id: str, n: int) -> None:
        await pack(ctx, order_id, n)

    return packing


@pytest.fixture
async def app(database: Database, packing: Workflow[..., None]) -> AsyncIterator[EddaApp]:
    async with EddaApp("shop", database.url, workflows=[packing]) as app:
        yield app


def order(order_id: str, n: int, type: str = "order.created") -> CloudEvent:
    data = f'{{"order_id": "{order_id}", "n": {n}}}'.encode()
    return event(f"{order_id}-{n}", type=type, data=data)


async def test_events_of_a_key_are_worked_off_one_run_after_the_other_and_none_is_lost(
    app: EddaApp, shop: Shop
) -> None:
    await app.deliver(order("a", 1))
    await eventually(lambda: shop.began == [("a", 1)])
    await app.deliver([order("a", 2), order("a", 3, "order.changed"), order("b", 1)])
    await eventually(lambda: ("b", 1) in shop.began)  # another key is not kept waiting
    shop.gate.set()
    await eventually(lambda: len(shop.ended) == 4)
    assert [each for each in shop.ended if each[0] == "a"] == [("a", 1), ("a", 2), ("a", 3)]
    assert shop.most_living == 1


async def test_an_event_for_the_living_run_of_its_key_is_accepted_and_never_unmatched(
    app: EddaApp, shop: Shop
) -> None:
    """No wait matches it and nothing starts, but the run, or the one behind it, gets it."""
    [first] = await app.deliver(order("a", 1))
    await eventually(lambda: shop.began == [("a", 1)])
    living = await app.deliver([order("a", 2), order("a", 3, "order.changed")])
    again = await app.deliver(order("a", 2))
    assert (first.verdict, first.starts) == (Verdict.ACCEPTED, 1)
    assert [(one.verdict, one.waits, one.starts) for one in living] == [(Verdict.ACCEPTED, 0, 0)] * 2
    assert again[0].verdict is Verdict.DUPLICATE
    shop.gate.set()
    await eventually(lambda: shop.ended == [("a", 1), ("a", 2), ("a", 3)])


async def test_an_event_that_a_run_has_received_starts_no_other(database: Database) -> None:
    got: list[object] = []

    @workflow(on="order.created", key="data.order_id", name="paying")
    async def paying(ctx: WorkflowContext, order_id: str) -> None:
        changed = await wait_event(ctx, "order.created", match={"data.order_id": order_id})
        got.append(changed.data["n"])

    async with EddaApp("shop", database.url, workflows=[paying]) as app:
        await app.deliver(order("a", 1))
        await app.deliver(order("a", 2))
        await eventually(lambda: got == [2])

        async def completed() -> bool:
            return len((await app.find_instances(status="completed"))["instances"]) == 1

        await eventually(completed)
        assert len((await app.find_instances())["instances"]) == 1


async def test_events_without_a_key_run_beside_each_other(app: EddaApp, shop: Shop) -> None:
    await app.deliver([event(f"x-{n}", data=b'{"order_id": null, "n": 1}') for n in range(3)])

    async def three() -> bool:
        return len((await app.find_instances())["instances"]) == 3

    await eventually(three)
    shop.gate.set()


async def test_an_addressed_event_of_the_key_starts_no_run_when_the_addressee_has_ended(
    app: EddaApp, shop: Shop
) -> None:
    shop.gate.set()
    await app.deliver(order("a", 1))
    await eventually(lambda: shop.ended == [("a", 1)])
    [instance] = (await app.find_instances())["instances"]
    data = b'{"order_id": "a", "n": 2}'
    addressed = event("a-2", data=data, extensions={"eddainstanceid": instance["instance_id"]})
    [result] = await app.deliver(addressed)
    assert result.starts == 0
    await app.deliver(order("a", 3))
    await eventually(lambda: shop.ended == [("a", 1), ("a", 3)])
    assert len((await app.find_instances())["instances"]) == 2
