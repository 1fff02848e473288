"""Hooks: every one is called, in order for each instance, and none of them can harm a workflow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda import (
    CloudEvent,
    HooksBase,
    RetryPolicy,
    WorkflowContext,
    WorkflowHooks,
    activity,
    send_event_transactional,
    wait_event,
    workflow,
)
from tests.engine.conftest import MakeApp
from tests.support.eventually import eventually


class Everything:
    """Notes every call of every hook there is."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(name)

        async def hook(*arguments: Any) -> None:
            await asyncio.sleep(0)
            self.calls.append((name, *arguments))

        return hook


NAMES = {name for name in vars(WorkflowHooks) if name.startswith("on_")}

tries = 0


@activity(retry_policy=RetryPolicy(0.01, 1, 0.01, max_attempts=3))
async def flaky(ctx: WorkflowContext) -> str:
    global tries  # noqa: PLW0603, counted over attempts
    tries += 1
    if tries == 1:
        raise ConnectionError("once")
    return "done"


@activity(retry_policy=RetryPolicy(max_attempts=1))
async def fail(ctx: WorkflowContext) -> None:
    raise ValueError("no")


@workflow
async def eventful(ctx: WorkflowContext, order: int) -> str:
    await flaky(ctx, activity_id="mine")  # type: ignore[call-arg]  # no type can say it
    await send_event_transactional(ctx, "order.seen", "/orders", {"order": order})
    event = await wait_event(ctx, "order.paid")
    return f"{event.data['by']}"


@workflow
async def failing(ctx: WorkflowContext) -> None:
    await fail(ctx)


@workflow
async def waiting(ctx: WorkflowContext) -> None:
    await wait_event(ctx, "never.comes")


async def test_every_hook_is_called_in_order(make_app: MakeApp) -> None:
    global tries  # noqa: PLW0603, as above
    tries = 0
    hooks = Everything()
    app = await make_app(eventful, failing, waiting, hooks=hooks)
    one = await eventful.start(order=7)
    await app.deliver(CloudEvent("1", "/bank", "order.paid", b'{"by": "ann"}'))
    assert await app.handle(one).result(timeout=20) == "ann"
    with pytest.raises(Exception, match="no"):
        await failing.start()
    two = await waiting.start()
    await app.cancel(two)
    await app.shutdown()

    mine = [call for call in hooks.calls if one in call]
    names = [call[0] for call in mine]
    assert names[:4] == [
        "on_workflow_start",
        "on_activity_start",
        "on_activity_retry",
        "on_activity_complete",
    ]
    assert names[-2:] == ["on_event_received", "on_workflow_complete"]
    assert mine[0] == ("on_workflow_start", one, "eventful", {"order": 7})
    assert mine[1] == ("on_activity_start", one, "mine", "flaky", False)
    _, _, activity_id, name, error, attempt, delay = mine[2]
    assert (activity_id, name, str(error), attempt, delay) == ("mine", "flaky", "once", 1, 0.01)
    assert mine[3] == ("on_activity_complete", one, "mine", "flaky", "done", False)
    assert mine[-2] == ("on_event_received", one, "order.paid", {"by": "ann"})
    assert mine[-1] == ("on_workflow_complete", one, "eventful", "ann")
    # It was parked, so that its history was replayed.
    assert ("on_activity_start", one, "mine", "flaky", True) in mine
    assert ("on_activity_complete", one, "mine", "flaky", "done", True) in mine
    assert ("on_event_sent", "order.seen", "/orders", {"order": 7}) in hooks.calls
    [failed] = [call for call in hooks.calls if call[0] == "on_workflow_failed"]
    assert failed[2] == "failing"
    assert "on_activity_failed" in [call[0] for call in hooks.calls]
    assert ("on_workflow_cancelled", two, "waiting") in hooks.calls
    assert {call[0] for call in hooks.calls} == NAMES


class Harmful(HooksBase):
    """Raises whatever it is told; slow, too."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        async def hook(*_: Any) -> None:
            await asyncio.sleep(0.01)
            raise RuntimeError(name)

        return hook


async def test_hooks_that_raise_harm_nobody(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    global tries  # noqa: PLW0603, as above
    tries = 0
    app = await make_app(eventful, hooks=Harmful())
    one = await eventful.start(order=7)
    await app.deliver(CloudEvent("1", "/bank", "order.paid", b'{"by": "ann"}'))
    assert await app.handle(one).result(timeout=20) == "ann"
    await eventually(lambda: "RuntimeError: on_workflow_complete" in caplog.text)


class OnlyOne:
    """Any subset of the hooks will do."""

    def __init__(self) -> None:
        self.completed: list[str] = []

    async def on_workflow_complete(self, instance_id: str, workflow_name: str, result: Any) -> None:
        self.completed.append(instance_id)


async def test_any_subset_will_do(make_app: MakeApp) -> None:
    hooks = OnlyOne()
    app = await make_app(eventful, hooks=hooks)
    one = await eventful.start(order=7)
    await app.deliver(CloudEvent("1", "/bank", "order.paid", b'{"by": "ann"}'))
    await app.handle(one).result(timeout=20)
    await eventually(lambda: hooks.completed == [one])


async def test_the_context_knows_the_hooks(make_app: MakeApp) -> None:
    hooks, seen = OnlyOne(), []

    @workflow
    async def looking(ctx: WorkflowContext) -> None:
        seen.append(ctx.hooks)

    await make_app(looking, hooks=hooks)
    await looking.start()
    assert seen == [hooks]
