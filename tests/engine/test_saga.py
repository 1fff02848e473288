"""What a failed workflow did is undone: last first, each once, and whatever happens in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from edda import (
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    compensation,
    on_failure,
    register_compensation,
    sleep,
    workflow,
)
from edda.errors import TransactionError
from tests.engine.conftest import MakeApp
from tests.support.eventually import eventually

undone: list[Any] = []
tried: dict[str, int] = {}


@pytest.fixture(autouse=True)
def _nothing_undone() -> None:
    undone.clear()
    tried.clear()


@compensation
async def undo(ctx: WorkflowContext, what: str, /, *more: object, loud: bool = False) -> None:
    undone.append((what, *more, loud) if more or loud else what)


@compensation
def undo_in_thread(ctx: WorkflowContext, what: str) -> None:
    undone.append(what)


@compensation
async def cancel_booking(ctx: WorkflowContext, booking: str, seats: int) -> None:
    undone.append((booking, seats))


@activity
@on_failure(cancel_booking)
async def book(ctx: WorkflowContext, seats: int, flight: str = "LH1") -> dict[str, Any]:
    return {"booking": f"{flight}/{seats}", "secret": 1}


class Booked(BaseModel):
    booking: str


@activity
@on_failure(cancel_booking)
async def book_model(ctx: WorkflowContext, seats: int) -> Booked:
    return Booked(booking=f"model/{seats}")


@activity(retry_policy=RetryPolicy(max_attempts=1))
async def fail(ctx: WorkflowContext, message: str = "no") -> None:
    raise ValueError(message)


@activity
async def give_up(ctx: WorkflowContext) -> None:
    raise TerminalError("over")


@workflow
async def trip(ctx: WorkflowContext) -> None:
    await book(ctx, 2)  # positional: must be kept
    await book_model(ctx, seats=3)
    await register_compensation(ctx, undo, "mail", 1, loud=True)
    await register_compensation(ctx, undo_in_thread, "thread")
    await give_up(ctx)


async def test_compensations_run_last_first_with_all_their_arguments(make_app: MakeApp) -> None:
    app = await make_app(trip)
    with pytest.raises(TerminalError, match="over"):
        await trip.start()
    assert undone == ["thread", ("mail", 1, True), ("model/3", 3), ("LH1/2", 2)]
    [found] = (await app.find_instances())["instances"]
    assert found["status"] == "failed"
    assert found["output_data"]["error_type"] == "TerminalError"


@workflow
async def well(ctx: WorkflowContext) -> str:
    await book(ctx, 2)
    await register_compensation(ctx, undo, "never")
    return "done"


async def test_nothing_is_undone_where_nothing_fails(make_app: MakeApp) -> None:
    app = await make_app(well)
    assert await app.handle(await well.start()).result() == "done"
    assert undone == []


@compensation
async def undo_badly(ctx: WorkflowContext) -> None:
    tried["badly"] = tried.get("badly", 0) + 1
    raise TerminalError("cannot be undone")


@workflow
async def stubborn(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo, "first")
    await register_compensation(ctx, undo_badly)
    await register_compensation(ctx, undo, "last")
    await fail(ctx)


async def test_a_compensation_that_fails_is_recorded_and_the_next_one_runs(make_app: MakeApp) -> None:
    app = await make_app(stubborn)
    handle = await stubborn.submit()
    with pytest.raises(Exception, match="no"):
        await handle.result(timeout=20)
    assert undone == ["last", "first"]
    assert tried["badly"] == 1
    kinds = [(record["kind"], record["name"]) for record in await app.storage.get_history(handle.id)]
    assert kinds[-4:] == [
        ("compensating", "stop"),
        ("compensation", "undo"),
        ("compensation_failed", "undo_badly"),
        ("compensation", "undo"),
    ]


@activity(retry_policy=RetryPolicy(0.05, 1.0, 0.05, max_attempts=4))
async def undo_at_the_third_try(ctx: WorkflowContext, what: str) -> None:
    tried[what] = tried.get(what, 0) + 1
    if tried[what] < 3:
        raise ConnectionError
    undone.append(what)


@workflow
async def retried(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo_at_the_third_try, "it")
    await fail(ctx)


async def test_a_compensation_is_retried_as_an_activity_is(make_app: MakeApp) -> None:
    await make_app(retried)
    with pytest.raises(Exception, match="no"):
        await retried.start()
    assert undone == ["it"]
    assert tried["it"] == 3


@activity(retry_policy=RetryPolicy(30.0, 1.0, 30.0, max_attempts=4))
async def undo_after_a_restart(ctx: WorkflowContext, what: str) -> None:
    tried[what] = tried.get(what, 0) + 1
    if tried[what] < 2:
        raise ConnectionError
    undone.append(what)


@workflow
async def interrupted(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo, "first")
    await register_compensation(ctx, undo_after_a_restart, "second")
    await register_compensation(ctx, undo, "third")
    await fail(ctx)


async def test_after_a_crash_in_the_middle_the_rest_is_undone_and_nothing_twice(make_app: MakeApp) -> None:
    app = await make_app(interrupted)
    handle = await interrupted.submit()
    await eventually(lambda: tried.get("second"))

    async def is_parked() -> bool:
        row = await app.store.get_instance(handle.id)
        return row is not None and row.owner is None

    await eventually(is_parked)  # its retry's backoff is long
    assert await handle.status() == "compensating"
    [found] = (await app.find_instances(status="compensating"))["instances"]
    assert found["instance_id"] == handle.id
    assert (await app.find_instances(status="running"))["instances"] == []
    await app.shutdown()

    other = await make_app(interrupted)
    other.store.clock_offset_us = 60_000_000
    await other.store.fire_timers()
    other.worker.kick()
    with pytest.raises(Exception, match="no"):
        await other.handle(handle.id).result(timeout=20)
    assert undone == ["third", "second", "first"]
    assert tried["second"] == 2


release = asyncio.Event()


@activity
@on_failure(undo)
async def slow(ctx: WorkflowContext, what: str) -> dict[str, str]:
    tried[what] = 1
    await release.wait()
    return {"what": what}


@compensation
async def undo_slow(ctx: WorkflowContext, what: str) -> None:
    undone.append(what)


@activity
@on_failure(undo_slow)
async def slow_and_undoable(ctx: WorkflowContext, what: str) -> None:
    tried[what] = 1
    await asyncio.sleep(0.2)


@workflow
async def in_parallel(ctx: WorkflowContext) -> None:
    async def fails_when_the_other_runs() -> None:
        await sleep(ctx, 0)
        await fail(ctx)

    await asyncio.gather(slow_and_undoable(ctx, "sibling"), fails_when_the_other_runs())


async def test_what_still_ran_when_its_sibling_failed_is_finished_and_undone(make_app: MakeApp) -> None:
    await make_app(in_parallel)
    with pytest.raises(Exception, match="no"):
        await in_parallel.start()
    assert tried == {"sibling": 1}
    assert undone == ["sibling"]


@activity(retry_policy=RetryPolicy(max_attempts=1))
async def registering(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo, "it")


@workflow
async def from_an_activity(ctx: WorkflowContext) -> None:
    await registering(ctx)


async def test_registering_inside_an_activity_is_refused(make_app: MakeApp) -> None:
    await make_app(from_an_activity)
    with pytest.raises(Exception, match="belongs to the workflow") as raised:
        await from_an_activity.start()
    assert isinstance(raised.value.__cause__, TransactionError)


@compensation
async def undo_in_session(ctx: WorkflowContext, name: str) -> None:
    from sqlalchemy import text

    await ctx.session.execute(text("UPDATE saga_seats SET taken = 0 WHERE name = :name"), {"name": name})


@workflow
async def with_session(ctx: WorkflowContext) -> None:
    await register_compensation(ctx, undo_in_session, name="12A")
    await fail(ctx)


async def test_a_compensation_writes_through_the_session(make_app: MakeApp) -> None:
    from sqlalchemy import text

    app = await make_app(with_session)
    async with app.storage.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE saga_seats (name VARCHAR(9), taken INT)"))
        await connection.execute(text("INSERT INTO saga_seats VALUES ('12A', 1)"))
    with pytest.raises(Exception, match="no"):
        await with_session.start()
    async with app.storage.engine.begin() as connection:
        assert await connection.scalar(text("SELECT taken FROM saga_seats")) == 0


@workflow
async def unstorable(ctx: WorkflowContext) -> object:
    await register_compensation(ctx, undo, "it")
    return object()


async def test_a_result_that_cannot_be_stored_is_a_failure_like_any_other(make_app: MakeApp) -> None:
    await make_app(unstorable)
    with pytest.raises(ValueError, match="cannot be stored"):
        await unstorable.start()
    assert undone == ["it"]
