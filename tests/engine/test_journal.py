"""Group commit: turns that gather share a flush, and a turn that the database refuses fails alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda.activity import activity
from edda.context import WorkflowContext
from edda.errors import StorageDataError
from edda.outbox.message import message
from edda.storage.rows import State
from edda.transactional import send_event_transactional
from edda.waits import wait_event
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event

TOO_LONG = "k" * 255


@activity
async def step(ctx: WorkflowContext, number: int) -> int:
    return number


@workflow
async def five_steps(ctx: WorkflowContext) -> int:
    return sum([await step(ctx, number) for number in range(5)])


async def test_a_workflow_of_five_steps_takes_at_most_seven_flushes(make_app: MakeApp) -> None:
    app = await make_app(five_steps)
    before = app.store.flushes
    assert await app.handle(await five_steps.start()).result() == 10
    assert app.store.flushes - before <= 7


async def test_fifty_workflows_at_once_share_their_flushes(make_app: MakeApp) -> None:
    app = await make_app(five_steps)
    before = app.store.flushes
    await asyncio.gather(*(five_steps.start() for _ in range(50)))
    turns = 50 * 6
    assert app.store.flushes - before < turns / 5


async def test_an_event_that_the_database_refuses_fails_its_activity_alone(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message goes around the checks at the edge: the database is the last to look."""

    @activity
    async def publishes(ctx: WorkflowContext, key: str) -> str:
        ctx._attempt.outbox.append(unchecked(key))  # type: ignore[union-attr]
        return key

    def unchecked(key: str) -> Any:
        good = message("told", "/tests", {"key": key}, key="good")
        return good if key == "good" else _with_reason(good)

    @workflow
    async def gathering(ctx: WorkflowContext) -> list[str]:
        results = await asyncio.gather(
            publishes(ctx, "good"), publishes(ctx, "bad"), step(ctx, 1), return_exceptions=True
        )
        return [type(result).__name__ for result in results]

    app = await make_app(gathering, five_steps)
    instance_id, neighbour = await asyncio.gather(gathering.start(), five_steps.start())
    assert await app.handle(instance_id).result() == ["str", StorageDataError.__name__, "int"]
    assert await app.handle(neighbour).result() == 10
    assert (await app.store.counts())["outbox"] == 1
    kinds = sorted(record["kind"] for record in await app.storage.get_history(instance_id))
    assert kinds == ["activity", "activity", "activity_failed"]


def _with_reason(good: Any) -> Any:
    """A row that no database takes: its destination is None."""
    import dataclasses

    return dataclasses.replace(good, destination=None)


async def test_a_wait_in_the_same_turn_as_a_refused_result_is_still_registered(make_app: MakeApp) -> None:
    @activity
    async def publishes(ctx: WorkflowContext) -> None:
        ctx._attempt.outbox.append(_with_reason(message("told", "/tests", {})))  # type: ignore[union-attr]

    @workflow
    async def both(ctx: WorkflowContext) -> str:
        received, result = await asyncio.gather(
            wait_event(ctx, "tick"), publishes(ctx), return_exceptions=True
        )
        assert not isinstance(received, BaseException)
        return f"{received.id} {type(result).__name__}"

    app = await make_app(both)
    handle = await both.submit()
    await app.deliver(event("tick", id="came"))
    assert await handle.result() == "came StorageDataError"


async def test_publishing_from_a_workflow_is_recorded_and_not_repeated_on_replay(make_app: MakeApp) -> None:
    @workflow
    async def tells(ctx: WorkflowContext) -> str:
        told = await send_event_transactional(ctx, "told", "/tests", {"n": 1})
        await wait_event(ctx, "go")
        return told

    app = await make_app(tells)
    instance_id = await tells.start()
    await app.deliver(event("go"))
    await app.handle(instance_id).result()
    assert (await app.store.counts())["outbox"] == 1
    [row] = await app.store.find_instances()
    assert row.state is State.COMPLETED
