"""``ctx.session`` and ``ctx.transaction()``: what user code writes is committed with its history, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.errors import TransactionError
from edda.retry import RetryExhaustedError, RetryPolicy
from edda.storage import schema
from edda.storage.rows import WaitKind
from edda.transactional import send_event_transactional
from edda.waits import sleep, wait_event
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event
from tests.support.eventually import eventually

ONCE = RetryPolicy(max_attempts=1)
AGAIN = RetryPolicy(initial_interval=0.01, max_attempts=2)


@pytest.fixture
def make_app(make_app: MakeApp) -> MakeApp:
    """With the user's own table in the database."""

    async def make(*workflows: Any, **settings: Any) -> EddaApp:
        app = await make_app(*workflows, **settings)
        async with app.storage.engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE users_own (name VARCHAR(50) PRIMARY KEY)"))
        return app

    return make


async def written(app: EddaApp) -> list[str]:
    async with app.storage.engine.connect() as connection:
        rows = await connection.execute(sa.text("SELECT name FROM users_own ORDER BY name"))
        return [str(row.name) for row in rows]


async def write(ctx: WorkflowContext, name: str) -> None:
    await ctx.session.execute(sa.text("INSERT INTO users_own (name) VALUES (:name)"), {"name": name})


@activity(retry_policy=ONCE)
async def book(ctx: WorkflowContext, name: str) -> str:
    await write(ctx, name)
    await send_event_transactional(ctx, "booked", "/tests", {"name": name})
    return f"booked {name}"


async def test_what_an_activity_writes_is_committed_with_its_record_and_its_event(make_app: MakeApp) -> None:
    @workflow
    async def booking(ctx: WorkflowContext) -> str:
        return await book(ctx, "a")

    app = await make_app(booking)
    assert await app.handle(await booking.start()).result() == "booked a"
    assert await written(app) == ["a"]
    assert (await app.store.counts())["outbox"] == 1


async def test_what_a_failed_attempt_wrote_is_rolled_back_and_the_next_writes_once(make_app: MakeApp) -> None:
    tries = 0

    @activity(retry_policy=AGAIN)
    async def flaky(ctx: WorkflowContext) -> int:
        nonlocal tries
        tries += 1
        await write(ctx, f"try {tries}")
        await send_event_transactional(ctx, "tried", "/tests", {"try": tries})
        if tries == 1:
            raise RuntimeError("first")
        return tries

    @workflow
    async def trying(ctx: WorkflowContext) -> int:
        return await flaky(ctx)

    app = await make_app(trying)
    assert await app.handle(await trying.start()).result() == 2
    assert await written(app) == ["try 2"]
    assert (await app.store.counts())["outbox"] == 1


async def test_a_constraint_that_the_database_refuses_counts_as_a_failed_attempt(make_app: MakeApp) -> None:
    @workflow
    async def twice(ctx: WorkflowContext) -> None:
        await book(ctx, "same")
        await book(ctx, "same")

    app = await make_app(twice)
    with pytest.raises(RetryExhaustedError):
        await twice.start()
    assert await written(app) == ["same"]
    assert (await app.store.counts())["outbox"] == 1


async def test_committing_the_session_by_hand_is_refused_and_nothing_is_written(make_app: MakeApp) -> None:
    @activity(retry_policy=ONCE)
    async def commits(ctx: WorkflowContext) -> None:
        await write(ctx, "too early")
        await ctx.session.commit()

    @workflow
    async def committing(ctx: WorkflowContext) -> None:
        await commits(ctx)

    app = await make_app(committing)
    with pytest.raises(RetryExhaustedError, match="committed by Edda") as caught:
        await committing.start()
    assert isinstance(caught.value.__cause__, TransactionError)
    assert await written(app) == []


async def test_a_callback_runs_after_the_commit_and_not_after_a_rollback(make_app: MakeApp) -> None:
    seen: list[list[str]] = []
    apps: list[EddaApp] = []
    tries = 0

    @activity(retry_policy=AGAIN)
    async def calls_back(ctx: WorkflowContext) -> None:
        nonlocal tries
        tries += 1
        await write(ctx, f"try {tries}")

        async def callback() -> None:
            seen.append(await written(apps[0]))

        ctx.register_post_commit(callback)
        if tries == 1:
            raise RuntimeError("first")

    @workflow
    async def calling(ctx: WorkflowContext) -> None:
        await calls_back(ctx)

    apps.append(await make_app(calling))
    await calling.start()
    assert await eventually(lambda: seen) == [["try 2"]]


async def test_the_session_belongs_to_activities(make_app: MakeApp) -> None:
    @workflow
    async def direct(ctx: WorkflowContext) -> None:
        ctx.session  # noqa: B018, it is the access that is refused

    await make_app(direct)
    with pytest.raises(TransactionError, match="Move the statement into an @activity"):
        await direct.start()


# ---------------------------------------------------------------------------------------------- blocks


async def test_activities_of_a_block_are_committed_together_at_its_end(make_app: MakeApp) -> None:
    inside = asyncio.Event()
    release = asyncio.Event()

    @activity
    async def waits(ctx: WorkflowContext) -> None:
        inside.set()
        await release.wait()

    @workflow
    async def block(ctx: WorkflowContext) -> list[str]:
        async with ctx.transaction():
            first = await book(ctx, "a")
            second = await book(ctx, "b")
            await send_event_transactional(ctx, "both", "/tests", {})
            await waits(ctx)
        return [first, second]

    app = await make_app(block)
    handle = await block.submit()
    await inside.wait()
    assert await app.storage.get_history(handle.id) == []
    if app.store.dialect != "sqlite":
        assert await written(app) == []
    release.set()
    assert await handle.result() == ["booked a", "booked b"]
    assert await written(app) == ["a", "b"]
    assert (await app.store.counts())["outbox"] == 3


async def test_an_exception_out_of_a_block_rolls_its_activities_back(make_app: MakeApp) -> None:
    @workflow
    async def block(ctx: WorkflowContext) -> str:
        try:
            async with ctx.transaction():
                await book(ctx, "a")
                raise ValueError("no")
        except ValueError:
            return await book(ctx, "after")

    app = await make_app(block)
    assert await app.handle(await block.start()).result() == "booked after"
    assert await written(app) == ["after"]
    assert (await app.store.counts())["outbox"] == 1


async def test_a_rolled_back_block_takes_the_same_way_on_replay(make_app: MakeApp) -> None:
    bodies: list[str] = []

    @activity
    async def noted(ctx: WorkflowContext, name: str) -> str:
        bodies.append(name)
        await write(ctx, name)
        return name

    @workflow
    async def block(ctx: WorkflowContext) -> str:
        try:
            async with ctx.transaction():
                if await noted(ctx, "inside") == "inside":
                    raise ValueError("no")
        except ValueError:
            await noted(ctx, "after")
        return (await wait_event(ctx, "go")).id

    app = await make_app(block)
    instance_id = await block.start()
    await app.deliver(event("go", id="went"))
    assert await app.handle(instance_id).result() == "went"
    assert bodies == ["inside", "after"]
    assert await written(app) == ["after"]


async def test_a_block_without_a_session_is_one_turn(make_app: MakeApp) -> None:
    @activity
    async def number(ctx: WorkflowContext, n: int) -> int:
        return n

    @workflow
    async def block(ctx: WorkflowContext) -> int:
        async with ctx.transaction():
            total = await number(ctx, 1) + await number(ctx, 2)
        received = await wait_event(ctx, "go")
        return total + int(received.data["n"])

    app = await make_app(block)
    instance_id = await block.start()
    kinds = [record["kind"] for record in await app.storage.get_history(instance_id)]
    assert kinds == ["activity", "activity", "transaction"]
    await app.deliver(event("go", {"n": 4}))
    assert await app.handle(instance_id).result() == 7


async def test_a_failed_attempt_inside_a_block_does_not_take_the_others_writes_with_it(
    make_app: MakeApp,
) -> None:
    tries = 0

    @activity(retry_policy=AGAIN)
    async def flaky(ctx: WorkflowContext) -> None:
        nonlocal tries
        tries += 1
        await write(ctx, f"try {tries}")
        if tries == 1:
            raise RuntimeError("first")

    @workflow
    async def block(ctx: WorkflowContext) -> None:
        async with ctx.transaction():
            await book(ctx, "a")
            await flaky(ctx)

    app = await make_app(block)
    await block.start()
    assert await written(app) == ["a", "try 2"]


async def test_a_block_dropped_in_the_middle_runs_again_from_its_beginning(make_app: MakeApp) -> None:
    bodies: list[str] = []
    stuck = asyncio.Event()

    @activity
    async def noted(ctx: WorkflowContext, name: str) -> None:
        bodies.append(name)
        await write(ctx, name)
        if bodies == ["a", "b"]:
            stuck.set()
            await asyncio.Event().wait()

    @workflow
    async def block(ctx: WorkflowContext) -> None:
        async with ctx.transaction():
            await noted(ctx, "a")
            await noted(ctx, "b")

    app = await make_app(block)
    handle = await block.submit()
    await stuck.wait()
    app.worker.runs[handle.id].abandon()
    app.worker._looks_for_orphans = True
    app.worker.kick()
    await handle.result()
    assert bodies == ["a", "b", "a", "b"]
    assert await written(app) == ["a", "b"]


async def test_waiting_inside_a_block_is_refused(make_app: MakeApp) -> None:
    @workflow
    async def block(ctx: WorkflowContext) -> str:
        refused = []
        async with ctx.transaction():
            for waiting in (lambda: sleep(ctx, 1), lambda: wait_event(ctx, "tick"), lambda: enter(ctx)):
                try:
                    await waiting()
                except TransactionError as error:
                    refused.append(str(error).partition("] ")[2].partition(" inside")[0])
        return "; ".join(refused)

    async def enter(ctx: WorkflowContext) -> None:
        async with ctx.transaction():
            pass

    app = await make_app(block)
    expected = "sleep(); wait_event(); another 'ctx.transaction()'"
    assert await app.handle(await block.start()).result() == expected


async def test_a_start_inside_an_open_session_is_refused_on_sqlite_and_works_elsewhere(
    make_app: MakeApp,
) -> None:
    @workflow
    async def inner(ctx: WorkflowContext) -> str:
        return "inner"

    @activity(retry_policy=ONCE)
    async def starts(ctx: WorkflowContext) -> str:
        await write(ctx, "a")
        return await inner.start()

    @workflow
    async def outer(ctx: WorkflowContext) -> str:
        return await starts(ctx)

    app = await make_app(inner, outer)
    if app.store.dialect == "sqlite":
        with pytest.raises(RetryExhaustedError, match="wait for itself"):
            await outer.start()
    else:
        started = await app.handle(await outer.start()).result()
        assert await app.handle(started).result() == "inner"


async def test_a_wait_that_outlived_its_result_does_not_keep_the_instance_awake(make_app: MakeApp) -> None:
    """The process died between the commit of ``ctx.session`` and the turn that drops the backoff's wait."""

    @activity
    async def writes(ctx: WorkflowContext) -> None:
        await ctx.session.execute(sa.text("SELECT 1"))

    @workflow
    async def resting(ctx: WorkflowContext) -> str:
        await writes(ctx)
        await wait_event(ctx, "tick")
        return "done"

    app = await make_app(resting)
    instance_id = await resting.start()
    async with app.storage.engine.begin() as connection:
        await connection.execute(
            sa.insert(schema.waits).values(
                instance_id=instance_id,
                seq=1,
                kind="retry",
                name="writes",
                chain=instance_id,
                cursor=0,
                skip=0,
                due=True,
            )
        )
        here = schema.instances.c.id == instance_id
        await connection.execute(sa.update(schema.instances).where(here).values(state="runnable"))
    app.worker.kick()

    async def rests() -> bool:
        row = await app.store.get_instance(instance_id)
        assert row is not None
        return row.owner is None and row.wait_kinds == {WaitKind.EVENT}

    await eventually(rests)
    await app.deliver(event("tick"))
    assert await app.handle(instance_id).result(timeout=20) == "done"
