"""Invariant 14: while user code runs nothing of Edda's is locked, unless it asked for a transaction itself."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.storage.schema import instances
from edda.waits import wait_event
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event
from tests.support.eventually import eventually


class Gate:
    """Where the activity of the test that runs now stands."""

    def __init__(self) -> None:
        self.inside = asyncio.Event()
        self.release = asyncio.Event()

    async def stand(self) -> None:
        self.inside.set()
        await self.release.wait()


gates: list[Gate] = []


@pytest.fixture
async def gate() -> Gate:
    gates.append(Gate())
    return gates[-1]


@activity
async def slow(ctx: WorkflowContext) -> None:
    await gates[-1].stand()


@activity
async def slow_with_session(ctx: WorkflowContext) -> None:
    await ctx.session.execute(sa.text("SELECT 1"))
    await gates[-1].stand()


async def locked_by_nobody(app: EddaApp, instance_id: str) -> None:
    """Everything of the instance can be locked at once by somebody else."""
    async with asyncio.timeout(5), app.storage.engine.begin() as connection:
        await connection.execute(sa.select(instances).where(instances.c.id == instance_id).with_for_update())
        await connection.execute(sa.text("SELECT id FROM edda_accept WHERE id = 1"))


async def test_nothing_is_locked_while_an_activity_runs(make_app: MakeApp, gate: Gate) -> None:
    @workflow
    async def running(ctx: WorkflowContext) -> None:
        await slow(ctx)

    app = await make_app(running)
    handle = await running.submit()
    await gate.inside.wait()
    await locked_by_nobody(app, handle.id)
    await app.deliver(event("tick"))
    gate.release.set()
    await handle.result()


async def test_an_open_session_locks_nothing_of_the_instance(make_app: MakeApp, gate: Gate) -> None:
    """Not on SQLite, where every open transaction of a writer is the only one."""

    @workflow
    async def running(ctx: WorkflowContext) -> str:
        received, _ = await asyncio.gather(wait_event(ctx, "tick"), slow_with_session(ctx))
        return received.id

    app = await make_app(running)
    if app.store.session_holds_writer:
        return
    handle = await running.submit()
    await gate.inside.wait()

    async def registered() -> bool:
        return (await app.store.counts())["waits"] == 1

    await eventually(registered)
    await locked_by_nobody(app, handle.id)
    [told] = await app.deliver(event("tick", id="came"))
    assert told.waits == 1
    gate.release.set()
    assert await handle.result() == "came"
