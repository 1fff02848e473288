"""Workflows that events start: one run per event, or one live run per key that leaves nothing unread behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.received import ReceivedEvent
from edda.retry import RetryPolicy
from edda.storage.rows import State, Verdict
from edda.waits import wait_event
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event
from tests.support.eventually import eventually


async def ended(app: EddaApp, count: int) -> list[Any]:
    """The results of all instances, oldest first, once that many have ended and none is left."""

    async def all_ended() -> bool:
        rows = await app.store.find_instances()
        return len(rows) == count and all(row.ended_at is not None for row in rows)

    await eventually(all_ended)
    rows = sorted(await app.store.find_instances(), key=lambda row: row.created_at)
    return [await app.handle(row.id).result() for row in rows]


async def test_each_event_of_its_type_starts_one_run_and_a_copy_none(make_app: MakeApp) -> None:
    @workflow(on="order.created")
    async def on_order(ctx: WorkflowContext, order_id: str) -> str:
        return order_id

    app = await make_app(on_order)
    created = event("order.created", {"order_id": "o-1", "more": "is left out"})
    told = await app.deliver([created, created, event("order.created", {"order_id": "o-2"})])
    assert [one.verdict for one in told] == [Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.ACCEPTED]
    assert sorted(await ended(app, 2)) == ["o-1", "o-2"]


async def test_a_prefix_starts_runs_for_every_type_below_it(make_app: MakeApp) -> None:
    @workflow(on="order.*")
    async def on_any(ctx: WorkflowContext, n: int) -> int:
        return n

    app = await make_app(on_any)
    await app.deliver(
        [event("order.created", {"n": 1}), event("order.paid.late", {"n": 2}), event("orders", {"n": 3})]
    )
    assert sorted(await ended(app, 2)) == [1, 2]


async def test_an_event_handler_workflow_is_started_by_the_type_of_its_name(make_app: MakeApp) -> None:
    @workflow(event_handler=True)
    async def order_created(ctx: WorkflowContext, order_id: str) -> str:
        return order_id

    app = await make_app(order_created)
    await app.deliver(event("order_created", {"order_id": "o-1"}))
    assert await ended(app, 1) == ["o-1"]


async def test_a_later_event_of_a_live_key_signals_the_run_instead_of_starting_another(
    make_app: MakeApp,
) -> None:
    @workflow(on="order.changed", key="data.order_id")
    async def order(ctx: WorkflowContext, order_id: str, n: int) -> list[int]:
        second = await wait_event(ctx, "order.changed", match={"data.order_id": order_id})
        return [n, second.data["n"]]

    app = await make_app(order)
    await app.deliver(event("order.changed", {"order_id": "o-1", "n": 1}))
    [told] = await app.deliver(event("order.changed", {"order_id": "o-1", "n": 2}))
    assert (told.verdict, told.starts) == (Verdict.ACCEPTED, 0)
    assert await ended(app, 1) == [[1, 2]]


async def test_an_event_that_comes_while_the_keyed_run_ends_starts_the_next_run(make_app: MakeApp) -> None:
    inside = asyncio.Event()
    release = asyncio.Event()

    @activity
    async def last_step(ctx: WorkflowContext) -> None:
        inside.set()
        await release.wait()

    @workflow(on="order.changed", key="data.order_id")
    async def order(ctx: WorkflowContext, order_id: str, n: int) -> int:
        await last_step(ctx)
        return n

    app = await make_app(order)
    await app.deliver(event("order.changed", {"order_id": "o-1", "n": 1}))
    await inside.wait()
    await app.deliver([event("order.changed", {"order_id": "o-1", "n": n}) for n in (2, 3)])
    await app.deliver(event("order.changed", {"order_id": "o-2", "n": 9}))
    release.set()
    assert sorted(await ended(app, 4)) == [1, 2, 3, 9]


async def test_an_unread_event_starts_the_next_run_also_when_the_keyed_run_failed(make_app: MakeApp) -> None:
    inside = asyncio.Event()
    release = asyncio.Event()

    @activity
    async def last_step(ctx: WorkflowContext) -> None:
        inside.set()
        await release.wait()

    @workflow(on="order.changed", key="data.order_id")
    async def order(ctx: WorkflowContext, order_id: str, n: int) -> int:
        await last_step(ctx)
        if n == 1:
            raise ValueError(n)
        return n

    app = await make_app(order)
    await app.deliver(event("order.changed", {"order_id": "o-1", "n": 1}))
    await inside.wait()
    await app.deliver(event("order.changed", {"order_id": "o-1", "n": 2}))
    release.set()

    async def both() -> bool:
        return sorted(row.state for row in await app.store.find_instances()) == [
            State.COMPLETED,
            State.FAILED,
        ]

    await eventually(both)


async def test_a_handler_is_called_once_for_each_event_and_retried_until_it_succeeds(
    make_app: MakeApp,
) -> None:
    calls: list[tuple[str, Any]] = []

    app = await make_app(initialize=False, default_retry_policy=RetryPolicy(initial_interval=0.01))

    @app.on_event("order.created")
    async def handle(received: ReceivedEvent) -> None:
        calls.append((received.id, received.data))
        if len(calls) == 1:
            raise ConnectionError

    await app.initialize()
    await app.deliver([event("order.created", {"n": 1}, id="e-1")] * 2)

    async def completed() -> bool:
        return [row.state for row in await app.store.find_instances()] == [State.COMPLETED]

    await eventually(completed)
    assert calls == [("e-1", {"n": 1})] * 2


async def test_a_handler_that_keeps_failing_leaves_a_failed_instance_with_the_reason(
    make_app: MakeApp,
) -> None:
    app = await make_app(initialize=False, default_retry_policy=RetryPolicy(max_attempts=1))

    @app.on_event("order.created")
    async def handle(received: ReceivedEvent) -> None:
        raise ValueError("never")

    await app.initialize()
    await app.deliver(event("order.created"))

    async def failed() -> bool:
        return [row.state for row in await app.store.find_instances()] == [State.FAILED]

    await eventually(failed)
    [instance] = (await app.find_instances())["instances"]
    assert "never" in instance["output_data"]["error_message"]


async def test_a_key_without_an_event_type_is_refused(make_app: MakeApp) -> None:
    with pytest.raises(ValueError, match="needs on="):

        @workflow(key="data.order_id")
        async def wrong(ctx: WorkflowContext) -> None:
            pass
