"""Several waits, one winner: only what it waited for is received, and replay gives the same winner."""

from __future__ import annotations

from typing import Any

import pytest

from edda import (
    WorkflowContext,
    channel,
    event,
    publish,
    sleep,
    subscribe,
    timer,
    wait_any,
    wait_event,
    workflow,
)
from tests.engine.conftest import MakeApp
from tests.engine.events import event as an_event
from tests.support.eventually import eventually


@workflow
async def choosing(ctx: WorkflowContext, order: int) -> list[Any]:
    await subscribe(ctx, "ops")
    told = []
    for _ in range(3):
        first = await wait_any(
            ctx, event("payment.*", match={"data.order": order}), channel("ops"), timer(hours=1)
        )
        told.append([first.index, first.kind, None if first.value is None else first.value.data])
        await sleep(ctx, 0.01)  # parks, so that the choice is replayed
    return told


async def test_whatever_comes_first_wins_and_the_others_are_still_to_come(make_app: MakeApp) -> None:
    app = await make_app(choosing)
    handle = app.handle(await choosing.start(order=7))
    await app.deliver(an_event("payment.completed", {"order": 8}))
    await publish(app, "ops", "stop")
    await app.deliver(an_event("payment.completed", {"order": 7, "n": 1}))
    await app.deliver(an_event("payment.failed", {"order": 7, "n": 2}))
    told = await handle.result(timeout=30)
    events = [one for one in told if one[1] == "event"]
    messages = [one for one in told if one[1] == "message"]
    assert messages == [[1, "message", "stop"]]
    assert events == [[0, "event", {"order": 7, "n": 1}], [0, "event", {"order": 7, "n": 2}]]
    assert (await app.store.counts())["waits"] == 0


@workflow
async def impatient(ctx: WorkflowContext) -> list[str]:
    first = await wait_any(ctx, timer(0.05), event("late"))
    late = await wait_event(ctx, "late")
    return [first.kind, late.data]


async def test_the_losers_event_is_left_for_the_next_wait(make_app: MakeApp) -> None:
    app = await make_app(impatient)
    handle = app.handle(await impatient.start())

    async def has_chosen() -> bool:
        return len(await app.storage.get_history(handle.id)) == 1

    await eventually(has_chosen)
    await app.deliver(an_event("late", "it"))
    assert await handle.result(timeout=30) == ["timer", "it"]


@workflow
async def both_at_once(ctx: WorkflowContext) -> list[str]:
    await sleep(ctx, 0.2)
    first = await wait_any(ctx, event("a"), event("b"))
    second = await wait_any(ctx, event("a"), event("b"))
    return [first.value.data, second.value.data]


async def test_of_two_that_are_there_the_one_accepted_first_wins(make_app: MakeApp) -> None:
    app = await make_app(both_at_once)
    handle = app.handle(await both_at_once.start())
    await app.deliver([an_event("b", "b"), an_event("a", "a")])
    assert await handle.result(timeout=30) == ["b", "a"]


@workflow
async def nothing(ctx: WorkflowContext) -> None:
    await wait_any(ctx)


async def test_nothing_to_wait_for_is_refused(make_app: MakeApp) -> None:
    await make_app(nothing)
    with pytest.raises(ValueError, match="needs something to wait for"):
        await nothing.start()
    with pytest.raises(ValueError, match="must not be negative"):
        timer(-1)
