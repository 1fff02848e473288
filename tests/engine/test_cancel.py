"""Cancelling: whatever the instance is doing, its code stops, what it did is undone, and it ends as cancelled."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import httpx
import pytest

from edda import (
    EddaApp,
    RetryPolicy,
    WorkflowCancelledError,
    WorkflowContext,
    activity,
    compensation,
    on_failure,
    register_compensation,
    sleep,
    wait_event,
    workflow,
)
from edda.exceptions import WorkflowCancelledException
from tests.engine.conftest import MakeApp
from tests.support.eventually import eventually

notes: list[str] = []
stop_thread = threading.Event()


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    notes.clear()
    stop_thread.clear()


@compensation
async def undo(ctx: WorkflowContext, what: str) -> None:
    notes.append(f"undone {what}")


@workflow
async def parked(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo, "it")
    await wait_event(ctx, "never.comes")
    notes.append("went on")


async def test_a_parked_instance_is_cancelled_and_undone(make_app: MakeApp) -> None:
    app = await make_app(parked)
    instance_id = await parked.start()
    assert await app.cancel(instance_id, by="operator")
    assert notes == ["undone it"]
    found = await app.storage.get_instance(instance_id)
    assert found is not None
    assert found["status"] == "cancelled"
    assert found["output_data"]["cancelled_by"] == "operator"
    assert found["output_data"]["previous_status"] == "waiting_for_message"
    assert found["output_data"]["cancelled_at"].endswith("+00:00")
    with pytest.raises(WorkflowCancelledError, match="operator"):
        await app.handle(instance_id).result()
    assert WorkflowCancelledException is WorkflowCancelledError
    assert (await app.store.counts())["waits"] == 0
    assert not await app.cancel(instance_id)
    assert not await app.cancel("nobody")


async def test_the_engine_of_edda_framework_cancels(make_app: MakeApp) -> None:
    app = await make_app(parked, initialize=False)
    before = app.replay_engine
    await app.initialize()
    engine = app.replay_engine
    assert before is None
    assert engine is not None
    assert await engine.cancel_workflow(await parked.start(), "somebody")
    assert notes == ["undone it"]


@workflow
async def plain(ctx: WorkflowContext) -> None:
    await sleep(ctx, 3_600)


async def test_what_has_nothing_to_undo_just_ends(make_app: MakeApp) -> None:
    app = await make_app(plain)
    handle = app.handle(await plain.start())
    assert await handle.cancel()
    assert await handle.status() == "cancelled"
    assert await app.storage.get_history(handle.id) == []


async def test_a_start_that_is_still_to_come_never_begins(make_app: MakeApp) -> None:
    app = await make_app(parked)
    handle = await parked.options(delay=timedelta(hours=1)).submit()
    assert await app.cancel(handle.id)
    assert await handle.status() == "cancelled"


@activity
async def endless(ctx: WorkflowContext) -> None:
    notes.append("begun")
    try:
        await asyncio.sleep(3_600)
    except asyncio.CancelledError:
        notes.append("interrupted")
        raise


@workflow
async def busy(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo, "it")
    await endless(ctx)


async def test_cancelling_reaches_into_a_running_activity(make_app: MakeApp) -> None:
    app = await make_app(busy)
    handle = await busy.submit()
    await eventually(lambda: notes == ["begun"])
    assert await handle.cancel()
    assert notes == ["begun", "interrupted", "undone it"]
    assert await handle.status() == "cancelled"
    assert app.worker.runs == {}


async def test_another_process_cancels_what_runs_here(make_app: MakeApp) -> None:
    await make_app(busy)
    handle = await busy.submit()
    await eventually(lambda: notes == ["begun"])
    client = await make_app(busy, name="engine", work=False)
    assert await client.cancel(handle.id)
    assert notes == ["begun", "interrupted", "undone it"]
    assert await handle.status() == "cancelled"


@activity
def endless_thread(ctx: WorkflowContext) -> None:
    notes.append("begun")
    while not ctx.cancelled and not stop_thread.wait(0.01):
        pass
    notes.append("thread saw it" if ctx.cancelled else "never saw it")


@workflow
async def busy_in_thread(ctx: WorkflowContext) -> None:
    await endless_thread(ctx)


async def test_a_thread_is_told_that_it_is_cancelled(make_app: MakeApp) -> None:
    await make_app(busy_in_thread)
    handle = await busy_in_thread.submit()
    await eventually(lambda: notes == ["begun"])
    try:
        assert await handle.cancel()
        await eventually(lambda: notes == ["begun", "thread saw it"])
    finally:
        stop_thread.set()


@activity(retry_policy=RetryPolicy(3_600, 1, 3_600, max_duration=None))
async def failing(ctx: WorkflowContext) -> None:
    raise ConnectionError


@workflow
async def in_backoff(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo, "it")
    await failing(ctx)


async def test_a_long_backoff_is_no_reason_to_wait(make_app: MakeApp) -> None:
    app = await make_app(in_backoff)
    handle = await in_backoff.submit()

    async def is_parked() -> bool:
        row = await app.store.get_instance(handle.id)
        return row is not None and row.owner is None

    await eventually(is_parked)
    assert await handle.cancel()
    assert notes == ["undone it"]


finish: list[asyncio.Event] = []


@activity
@on_failure(undo)
async def undoable(ctx: WorkflowContext, what: str) -> None:
    notes.append("begun")
    await eventually(lambda: ctx.cancelled)
    notes.append("finished")


@workflow
async def undoable_step(ctx: WorkflowContext) -> None:
    await undoable(ctx, what="step")
    await endless(ctx)


async def test_a_step_that_something_undoes_is_let_finish_and_undone(make_app: MakeApp) -> None:
    await make_app(undoable_step)
    handle = await undoable_step.submit()
    await eventually(lambda: notes == ["begun"])
    assert await handle.cancel(wait=0)
    with pytest.raises(WorkflowCancelledError):
        await handle.result(timeout=20)
    assert notes == ["begun", "finished", "undone step"]


@compensation
async def slow_undo(ctx: WorkflowContext) -> None:
    notes.append("undoing")
    await finish[-1].wait()
    notes.append("undone")


@activity(retry_policy=RetryPolicy(max_attempts=1))
async def fail(ctx: WorkflowContext) -> None:
    raise ValueError("no")


@workflow
async def failing_slowly(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, slow_undo)
    await fail(ctx)


async def test_cancelling_what_is_compensating_changes_nothing(make_app: MakeApp) -> None:
    await make_app(failing_slowly)
    finish.append(asyncio.Event())
    handle = await failing_slowly.submit()
    await eventually(lambda: notes == ["undoing"])
    assert await handle.status() == "compensating"
    cancelling = asyncio.create_task(handle.cancel(wait=20))
    finish[-1].set()
    assert not await cancelling
    with pytest.raises(Exception, match="no"):
        await handle.result(timeout=20)
    assert notes == ["undoing", "undone"]


async def test_nobody_has_the_workflow_so_it_stays_cancelling_until_somebody_does(make_app: MakeApp) -> None:
    first = await make_app(parked)
    instance_id = await parked.start()
    await first.shutdown()
    client = await make_app(plain)
    assert await client.cancel(instance_id, wait=0.2)
    assert await client.handle(instance_id).status() == "cancelling"
    [found] = (await client.find_instances(status="cancelling"))["instances"]
    assert found["instance_id"] == instance_id
    await make_app(parked, plain)
    await eventually(lambda: notes == ["undone it"], 30)


async def test_cancelled_over_http(make_app: MakeApp) -> None:
    app = await make_app(parked, gateway_tokens=["s3cret"])
    instance_id = await parked.start()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edda") as client:
        refused = await client.post(f"/cancel/{instance_id}")
        assert refused.status_code == 401
        assert notes == []
        client.headers["authorization"] = "Bearer s3cret"
        answer = await client.post(f"/cancel/{instance_id}")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "cancelled", "instance_id": instance_id},
        )
        again = await client.post(f"/cancel/{instance_id}")
        assert again.status_code == 400
        assert "nothing was cancelled" in again.json()["error"]


@workflow
async def many(ctx: WorkflowContext, number: int) -> int:
    for _ in range(number % 4):
        await undoable_now(ctx, what=str(number))
    if number % 3 == 0:
        await wait_event(ctx, "never.comes")
    return number


@activity
@on_failure(undo)
async def undoable_now(ctx: WorkflowContext, what: str) -> None:
    await asyncio.sleep(0.01 * (int(what) % 3))
    notes.append(f"done {what}")


async def test_cancelled_at_whatever_moment_what_was_done_is_undone(make_app: MakeApp) -> None:
    app: EddaApp = await make_app(many)

    async def one(number: int) -> None:
        handle = await many.submit(number=number)
        await asyncio.sleep(0.003 * (number % 7))
        cancelled = await handle.cancel(wait=None)
        ended: Any = await handle.ended()
        assert str(ended.state) == ("cancelled" if cancelled else "completed")
        done, undone = notes.count(f"done {number}"), notes.count(f"undone {number}")
        assert undone == (done if cancelled else 0), (number, notes)

    await asyncio.gather(*map(one, range(60)))
    assert app.worker.runs == {}


@activity
async def quick(ctx: WorkflowContext, what: str) -> None:
    notes.append(what)


@activity
async def until_released(ctx: WorkflowContext) -> None:
    notes.append("begun")
    await finish[-1].wait()


@workflow
async def in_a_block(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, slow_undo)
    async with ctx.transaction():
        await quick(ctx, "in the block")
        await until_released(ctx)
    notes.append("went on")
    await quick(ctx, "never")


async def test_a_block_goes_on_to_its_end_and_what_follows_replays(make_app: MakeApp) -> None:
    finish.append(asyncio.Event())
    app = await make_app(in_a_block)
    handle = await in_a_block.submit()
    await eventually(lambda: "begun" in notes)
    assert await handle.cancel(wait=0)
    await eventually(lambda: app.worker.runs[handle.id].cancelling)
    finish[-1].set()
    finish.append(asyncio.Event())
    await eventually(lambda: "undoing" in notes)
    app.worker.runs[handle.id].restart()  # as after a crash: from what is committed
    await eventually(lambda: notes.count("undoing") == 2)
    finish[-1].set()
    with pytest.raises(WorkflowCancelledError):
        await handle.result(timeout=20)
    assert "never" not in notes
    assert notes[-1] == "undone"


@workflow
async def with_a_time_limit(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, slow_undo)
    async with asyncio.timeout(3_600):
        await wait_event(ctx, "never.comes")


async def test_replay_does_not_wait_for_what_the_stopped_code_awaited(make_app: MakeApp) -> None:
    finish.append(asyncio.Event())
    app = await make_app(with_a_time_limit)
    handle = await with_a_time_limit.submit()
    await eventually(lambda: handle.id in app.worker.runs)
    assert await handle.cancel(wait=0)
    await eventually(lambda: "undoing" in notes)
    app.worker.runs[handle.id].restart()
    await eventually(lambda: notes.count("undoing") == 2)
    finish[-1].set()
    with pytest.raises(WorkflowCancelledError):
        await handle.result(timeout=20)
