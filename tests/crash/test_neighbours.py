"""Services that share a database, apps that share a process, runs that share a loop: none stops another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.storage.rows import State
from edda.workflow import Workflow, workflow
from tests.support.databases import Database

Open = Callable[..., Awaitable[EddaApp]]


@pytest.fixture
async def open_app(database: Database) -> AsyncIterator[Open]:
    apps: list[EddaApp] = []

    async def make(name: str, *found: Workflow[Any, Any], **settings: Any) -> EddaApp:
        app = EddaApp(name, database.url, workflows=found, lease_seconds=5, shutdown_timeout=1, **settings)
        apps.append(app)
        await app.initialize()
        return app

    yield make
    for app in apps:
        await app.shutdown()


@workflow
async def who(ctx: WorkflowContext) -> str:
    return ctx.worker_id


async def test_two_apps_in_one_process_run_each_its_own(open_app: Open) -> None:
    @workflow(name="same")
    async def left(ctx: WorkflowContext) -> str:
        return f"left in {ctx.worker_id}"

    @workflow(name="same")
    async def right(ctx: WorkflowContext) -> str:
        return f"right in {ctx.worker_id}"

    one, other = await open_app("one", left), await open_app("other", right)
    handles = [await (one.submit(left) if number % 2 else other.submit(right)) for number in range(20)]
    results = [await handle.result(timeout=20) for handle in handles]
    wanted = [
        f"left in {one.worker.owner}" if number % 2 else f"right in {other.worker.owner}"
        for number in range(20)
    ]
    assert results == wanted


async def test_instances_of_one_service_are_never_run_by_another(open_app: Open) -> None:
    client = await open_app("billing", who, work=False)
    shipping = await open_app("shipping", who)
    orphan = await client.submit(who)
    # More than one claim of the other service has come and gone after it.
    for _ in range(5):
        own = await (await shipping.submit(who)).result(timeout=20)
        assert own == shipping.worker.owner
        shipping.worker.kick()
    row = await client.store.get_instance(orphan.id)
    assert row is not None
    assert (row.state, row.fence) == (State.RUNNABLE, 0)

    billing = await open_app("billing", who)
    assert await orphan.result(timeout=20) == billing.worker.owner


async def test_slow_activity_stops_no_other(open_app: Open) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    @activity
    async def slow(ctx: WorkflowContext) -> None:
        begun.set()
        await gate.wait()

    @workflow
    async def slow_one(ctx: WorkflowContext) -> str:
        await slow(ctx)
        return "slow"

    app = await open_app("orders", slow_one, who)
    handle = await app.submit(slow_one)
    await begun.wait()
    for quick in [await app.submit(who) for _ in range(20)]:
        await quick.result(timeout=20)
    assert await handle.status() == "running"
    gate.set()
    assert await handle.result(timeout=20) == "slow"


async def test_sync_activities_run_in_threads_side_by_side(open_app: Open) -> None:
    # Nobody passes before all three are there: in one thread, or in the loop, they would wait for ever.
    together = threading.Barrier(3)

    @activity
    def meet(ctx: WorkflowContext) -> str:
        together.wait(20)
        return threading.current_thread().name

    @workflow
    async def meeting(ctx: WorkflowContext) -> list[str]:
        return await asyncio.gather(*(meet(ctx) for _ in range(3)))

    app = await open_app("orders", meeting)
    names = await (await app.submit(meeting)).result(timeout=30)
    assert len(set(names)) == 3
    assert threading.current_thread().name not in names
