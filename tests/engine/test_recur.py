"""``ctx.recur()``: a long life in many short runs."""

from __future__ import annotations

import asyncio

import pytest

from edda import (
    CloudEvent,
    RetryPolicy,
    WorkflowContext,
    activity,
    compensation,
    register_compensation,
    wait_event,
    workflow,
)
from edda.errors import TransactionError
from edda.storage.rows import State
from edda.workflow import RecurException, get_all_workflows
from tests.engine.conftest import MakeApp

undone: list[str] = []


@activity
async def add(ctx: WorkflowContext, one: int, two: int) -> int:
    return one + two


@compensation
async def undo(ctx: WorkflowContext) -> None:
    undone.append("it")


@workflow
async def counting(ctx: WorkflowContext, until: int, number: int = 0) -> int:
    await register_compensation(ctx, undo)
    number = await add(ctx, number, 1)
    if number < until:
        await ctx.recur(until=until, number=number)
    return number


async def test_a_run_goes_on_as_another_one(make_app: MakeApp) -> None:
    undone.clear()
    app = await make_app(counting)
    handle = await counting.submit(until=4)
    assert await handle.result(timeout=20) == 4
    assert undone == []
    rows = (await app.find_instances())["instances"]
    assert [row["status"] for row in rows] == ["completed", "recurred", "recurred", "recurred"]
    first = await app.storage.get_instance(handle.id)
    assert first is not None
    assert first["output_data"] == {
        "recur_kwargs": {"until": 4, "number": 1},
        "continued_as": rows[2]["instance_id"],
    }
    assert rows[2]["continued_from"] == handle.id
    for row in rows:
        assert len(await app.storage.get_history(row["instance_id"])) == 1
    assert issubclass(RecurException, BaseException)
    assert get_all_workflows()["counting"].name == "counting"


async def test_start_gives_the_id_of_the_last_run(make_app: MakeApp) -> None:
    app = await make_app(counting)
    instance_id = await counting.start(until=3)
    found = await app.storage.get_instance(instance_id)
    assert found is not None
    assert found["status"] == "completed"
    assert found["output_data"] == {"result": 3}


@workflow
async def collecting(ctx: WorkflowContext, got: list[int], until: int) -> list[int]:
    event = await wait_event(ctx, "number")
    got = [*got, event.data]
    if len(got) < until:
        await ctx.recur(got=got, until=until)
    return got


async def test_events_are_received_once_and_in_order_along_the_chain(make_app: MakeApp) -> None:
    app = await make_app(collecting)
    handle = await collecting.submit(got=[], until=12)
    for start in range(0, 12, 3):
        await app.deliver(
            [CloudEvent(str(n), "/test", "number", str(n).encode()) for n in range(start, start + 3)]
        )
        await asyncio.sleep(0.01 * (start % 2))
    assert await handle.result(timeout=30) == list(range(12))


@workflow
async def addressed(ctx: WorkflowContext, got: int = 0) -> int:
    event = await wait_event(ctx, "for.me")
    if got < 2:
        await ctx.recur(got=got + 1)
    return int(event.data)


async def test_what_is_addressed_to_the_first_run_reaches_the_one_that_lives(make_app: MakeApp) -> None:
    app = await make_app(addressed)
    handle = await addressed.submit()
    for number in range(3):
        event = CloudEvent(
            str(number), "/t", "for.me", str(number).encode(), extensions={"eddainstanceid": handle.id}
        )
        await app.deliver(event)
    assert await handle.result(timeout=20) == 2


@workflow(on="tick", key="data.key")
async def keyed(ctx: WorkflowContext, key: str, seen: int = 0) -> int:
    await wait_event(ctx, "tock", match={"data.key": key})
    if seen < 2:
        await ctx.recur(key=key, seen=seen + 1)
    return seen


async def test_a_keyed_run_stays_the_only_one_of_its_key_while_it_recurs(make_app: MakeApp) -> None:
    app = await make_app(keyed)
    data = b'{"key": "k"}'
    await app.deliver(CloudEvent("start", "/t", "tick", data))
    for number in range(3):
        await app.deliver(CloudEvent(f"tock{number}", "/t", "tock", data))
        rows = await app.store.find_instances()
        assert sum(row.state is not State.RECURRED for row in rows) == 1
    rows = await app.store.find_instances(states=[State.RECURRED, State.COMPLETED], limit=9)
    for _ in range(100):
        rows = await app.store.find_instances()
        if any(row.state is State.COMPLETED for row in rows):
            break
        await asyncio.sleep(0.05)
    assert sorted(str(row.state) for row in rows) == ["completed", "recurred", "recurred"]


@activity
async def recurring_activity(ctx: WorkflowContext) -> None:
    await ctx.recur(until=1)


@workflow
async def wrong(ctx: WorkflowContext, how: str) -> None:
    if how == "activity":
        await recurring_activity(ctx)
    elif how == "arguments":
        await ctx.recur(how="", nonsense=1)
    else:
        async with ctx.transaction():
            await ctx.recur(how="arguments")


@pytest.mark.parametrize(
    ("how", "message"),
    [("activity", "not in an activity"), ("arguments", "nonsense"), ("block", "ctx.transaction")],
)
async def test_where_it_has_no_place_it_is_refused(make_app: MakeApp, how: str, message: str) -> None:
    await make_app(wrong, default_retry_policy=RetryPolicy(max_attempts=1))
    with pytest.raises(Exception, match=message) as raised:
        await wrong.start(how=how)
    assert isinstance(raised.value.__cause__ or raised.value, TransactionError | TypeError)


async def test_the_next_run_goes_on_elsewhere_when_its_worker_stops(make_app: MakeApp) -> None:
    app = await make_app(counting)
    handles = [await counting.submit(until=30) for _ in range(10)]
    await asyncio.sleep(0.1)
    await app.shutdown()
    other = await make_app(counting)
    for handle in handles:
        assert await other.handle(handle.id).result(timeout=30) == 30
