"""asyncio's own ways of doing several things at once, in a workflow: the same again after a crash at any commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.retry import RetryExhaustedError, RetryPolicy
from edda.transactional import send_event_transactional
from edda.waits import EventTimeoutError, sleep, wait_event
from edda.workflow import workflow
from tests.engine.crashes import WAYS, Crash, How, apps_of, run_through
from tests.engine.events import event
from tests.support.databases import Database

Program = Callable[[WorkflowContext], Coroutine[Any, Any, Any]]

ONCE = RetryPolicy(max_attempts=1)


@activity
async def step(ctx: WorkflowContext, value: Any) -> Any:
    return value


@activity
async def slow(ctx: WorkflowContext, value: Any) -> Any:
    await asyncio.sleep(0.02)
    return value


@activity(retry_policy=ONCE)
async def fails(ctx: WorkflowContext) -> None:
    raise ValueError("no")


@activity
async def book(ctx: WorkflowContext, name: str) -> str:
    """Twice in the table is what a test would see."""
    await ctx.session.execute(sa.text("INSERT INTO booked (name) VALUES (:name)"), {"name": name})
    return name


async def arrives(ctx: WorkflowContext, number: int) -> Any:
    return (await wait_event(ctx, "arrived", match={"data.number": number})).data["text"]


# ---------------------------------------------------------------------------------------------- programs


async def gathered(ctx: WorkflowContext) -> Any:
    found = await asyncio.gather(
        slow(ctx, 1), step(ctx, 2), book(ctx, "a"), arrives(ctx, 1), sleep(ctx, 0.01)
    )
    return [*found, await step(ctx, found)]


async def gathered_with_an_error(ctx: WorkflowContext) -> Any:
    found = await asyncio.gather(slow(ctx, 1), fails(ctx), return_exceptions=True)
    return await step(ctx, [str(type(one)) if isinstance(one, RetryExhaustedError) else one for one in found])


async def task_group(ctx: WorkflowContext) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in (slow(ctx, 1), arrives(ctx, 1), book(ctx, "a"))]
    return await step(ctx, [task.result() for task in tasks])


async def task_group_that_fails(ctx: WorkflowContext) -> Any:
    failed = 0
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(ctx))
            group.create_task(slow(ctx, 1))
            group.create_task(arrives(ctx, 99))
    except* RetryExhaustedError as failures:
        failed = len(failures.exceptions)
    return await step(ctx, failed)


async def as_completed(ctx: WorkflowContext) -> Any:
    order = []
    # Of coroutines it would make tasks in the order of a set, which no replay repeats.
    doing = [slow(ctx, "slow"), step(ctx, "step"), arrives(ctx, 1), arrives(ctx, 2)]
    for one in asyncio.as_completed([asyncio.create_task(each) for each in doing]):
        order.append(await one)
        await step(ctx, list(order))
    return order


async def first_completed(ctx: WorkflowContext) -> Any:
    tasks = {asyncio.create_task(one) for one in (slow(ctx, "slow"), arrives(ctx, 1), arrives(ctx, 2))}
    order = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        order.append(await step(ctx, sorted(task.result() for task in done)))
    return order


async def first_completed_and_the_rest_given_up(ctx: WorkflowContext) -> Any:
    tasks = [asyncio.create_task(one) for one in (step(ctx, "step"), arrives(ctx, 99), sleep(ctx, 3600))]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    return await step(ctx, [task.result() for task in done])


async def durable_timeout(ctx: WorkflowContext) -> Any:
    with contextlib.suppress(EventTimeoutError):
        await wait_event(ctx, "never", timeout_seconds=0.01)
    return await asyncio.gather(step(ctx, 1), arrives(ctx, 1))


async def task_group_whose_tasks_clean_up(ctx: WorkflowContext) -> Any:
    cleaned = []

    async def cleans_up(number: int) -> None:
        try:
            await arrives(ctx, 99)
        finally:
            cleaned.append(await step(ctx, number))

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(cleans_up(number))
            await slow(ctx, 0)
            await fails(ctx)
    except* RetryExhaustedError:
        cleaned.append("failed")
    return await step(ctx, cleaned)


async def sets_of_tasks(ctx: WorkflowContext) -> Any:
    tasks = {asyncio.create_task(arrives(ctx, number)) for number in (1, 2, 97, 98, 99)}
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    found = [await step(ctx, task.result()) for task in done]
    for task in rest:
        task.cancel()
    return await step(
        ctx, [found, await asyncio.gather(*(step(ctx, number) for number, _ in enumerate(rest)))]
    )


async def timeout_that_strikes(ctx: WorkflowContext) -> Any:
    try:
        async with asyncio.timeout(0.03):
            await asyncio.gather(step(ctx, 1), arrives(ctx, 99))
    except TimeoutError:
        await step(ctx, "late")
    return await asyncio.gather(step(ctx, 2), arrives(ctx, 1))


async def timeout_that_does_not_strike(ctx: WorkflowContext) -> Any:
    async with asyncio.timeout(60):
        found = await asyncio.gather(slow(ctx, 1), arrives(ctx, 1))
    return await step(ctx, found)


async def queues_and_locks(ctx: WorkflowContext) -> Any:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    lock = asyncio.Lock()

    async def produce(what: Coroutine[Any, Any, Any]) -> None:
        value = await what
        async with lock:
            await step(ctx, value)
            await queue.put(value)

    producers = [asyncio.create_task(produce(one)) for one in (slow(ctx, 1), step(ctx, 2), arrives(ctx, 1))]
    found = [await queue.get() for _ in producers]
    await asyncio.gather(*producers)
    return await step(ctx, found)


async def block_beside_other_work(ctx: WorkflowContext) -> Any:
    async def inside() -> Any:
        async with ctx.transaction():
            return [await slow(ctx, "in"), await book(ctx, "a"), await step(ctx, "out")]

    return await step(
        ctx, await asyncio.gather(step(ctx, 1), arrives(ctx, 1), slow(ctx, 2), sleep(ctx, 0.001), inside())
    )


async def block_right_after_a_wait(ctx: WorkflowContext) -> Any:
    found = await arrives(ctx, 1)
    async with ctx.transaction():
        await step(ctx, found)
        await book(ctx, "a")
    await sleep(ctx, 0.001)
    async with ctx.transaction():
        await book(ctx, "b")
    return found


async def blocks_of_several_tasks(ctx: WorkflowContext) -> Any:
    done = asyncio.Event()

    async def first() -> None:
        async with ctx.transaction():
            await book(ctx, "a")
            done.set()

    async def second() -> Any:
        await done.wait()
        await send_event_transactional(ctx, "between", "/tests", {})
        found = await asyncio.gather(step(ctx, "b"), arrives(ctx, 1))
        async with ctx.transaction():
            await book(ctx, "b")
        return found

    return (await asyncio.gather(first(), second()))[1]


PROGRAMS = [
    gathered,
    gathered_with_an_error,
    task_group,
    task_group_that_fails,
    task_group_whose_tasks_clean_up,
    sets_of_tasks,
    as_completed,
    first_completed,
    first_completed_and_the_rest_given_up,
    durable_timeout,
    timeout_that_strikes,
    timeout_that_does_not_strike,
    queues_and_locks,
    block_beside_other_work,
    block_right_after_a_wait,
    blocks_of_several_tasks,
]


# ---------------------------------------------------------------------------------------------- the test


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_it_goes_on_as_if_nothing_had_happened_after_a_crash_at_any_commit(
    sqlite_database: Database, program: Program, how: How
) -> None:
    running = workflow(name="program")(program)

    make_app = apps_of(sqlite_database.url, running)

    async def prepare(app: EddaApp) -> None:
        async with app.storage.engine.begin() as connection:
            for table in ("instances", "history", "waits", "outbox"):
                await connection.execute(sa.text(f"DELETE FROM edda_{table}"))
            await connection.execute(sa.text("DROP TABLE IF EXISTS booked"))
            await connection.execute(sa.text("CREATE TABLE booked (name VARCHAR(50) PRIMARY KEY)"))
        await app.deliver(
            [event("arrived", {"number": number, "text": f"text {number}"}) for number in (1, 2)]
        )

    _, commits = await run_through(make_app, running, None, prepare)
    assert commits >= 3
    for number in range(1, commits + 1):
        await run_through(make_app, running, Crash(number, how), prepare)
