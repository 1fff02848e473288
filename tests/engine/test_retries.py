"""Failed attempts are durable: neither their number nor their pause is forgotten, and no worker is held meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from edda.activity import activity
from edda.context import WorkflowContext
from edda.retry import RetryExhaustedError, RetryPolicy
from edda.storage.rows import LoadedInstance, State
from edda.workflow import workflow
from tests.engine.clock import advance
from tests.engine.conftest import MakeApp
from tests.support.eventually import eventually

PATIENT = RetryPolicy(
    initial_interval=3600, backoff_coefficient=1, max_interval=3600, max_attempts=3, max_duration=None
)


async def test_a_long_backoff_parks_the_instance_and_its_attempts_go_on_counting(make_app: MakeApp) -> None:
    tries: list[int] = []

    @activity(retry_policy=PATIENT)
    async def fails(ctx: WorkflowContext) -> None:
        tries.append(len(tries) + 1)
        raise ConnectionError(f"try {len(tries)}")

    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        await fails(ctx)

    app = await make_app(failing)
    handle = await failing.submit()

    async def parked() -> bool:
        row = await app.store.get_instance(handle.id)
        return row is not None and row.state is State.WAITING and not app.worker.runs

    for count in (1, 2):
        await eventually(parked)
        assert len(tries) == count
        assert await handle.status() == "running"
        await advance(app, 3601)
        await eventually(lambda count=count: len(tries) > count)  # type: ignore[misc]
    with pytest.raises(RetryExhaustedError, match="after 3 attempts: ConnectionError: try 3"):
        await handle.result()
    assert tries == [1, 2, 3]


async def test_start_waits_for_the_outcome_through_a_parked_backoff(make_app: MakeApp) -> None:
    tries: list[int] = []

    @activity(retry_policy=PATIENT)
    async def second_time_lucky(ctx: WorkflowContext) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError
        return "lucky"

    @workflow
    async def lucky(ctx: WorkflowContext) -> str:
        return await second_time_lucky(ctx)

    app = await make_app(lucky)
    starting = asyncio.create_task(lucky.start())

    async def parked() -> bool:
        return [row.state for row in await app.store.find_instances()] == [State.WAITING]

    await eventually(parked)
    assert not starting.done()
    await advance(app, 3601)
    assert await app.handle(await starting).result() == "lucky"


async def test_an_attempt_count_survives_the_worker(make_app: MakeApp) -> None:
    tries: list[str] = []
    quick = RetryPolicy(initial_interval=0.05, backoff_coefficient=1, max_attempts=3)
    stuck = asyncio.Event()

    @activity(retry_policy=quick)
    async def fails(ctx: WorkflowContext) -> None:
        tries.append(ctx.worker_id)
        if len(tries) == 2:
            stuck.set()
            await asyncio.Event().wait()  # the worker is lost in the middle of the second attempt
        raise ConnectionError

    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        await fails(ctx)

    app = await make_app(failing)
    handle = await failing.submit()
    await stuck.wait()
    app.worker.runs[handle.id].lose()
    with pytest.raises(RetryExhaustedError, match="after 3 attempts"):
        await handle.result()
    # The second attempt left no trace, so that it is made again.
    assert len(tries) == 4


async def test_a_row_that_was_read_before_it_was_replaced_starts_no_attempt(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News make the owner read its waits; meanwhile the attempt fails, and its next backoff is stored."""
    tries: list[int] = []
    read = asyncio.Event()

    @activity(retry_policy=PATIENT)
    async def fails(ctx: WorkflowContext) -> None:
        tries.append(len(tries) + 1)
        if len(tries) == 2:
            app.worker.runs[ctx.instance_id].load()
            await read.wait()
        raise ConnectionError(f"try {len(tries)}")

    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        await fails(ctx)

    app = await make_app(failing)
    real = app.store.load

    async def late(ids: Sequence[str], *, history: bool = True) -> dict[str, LoadedInstance]:
        loaded = await real(ids, history=history)
        if len(tries) != 2 or history:
            return loaded
        read.set()

        async def is_replaced() -> bool:
            [now] = (await real(ids, history=False)).values()
            return not now.waits[0].due

        await eventually(is_replaced)
        return loaded

    monkeypatch.setattr(app.store, "load", late)
    handle = await failing.submit()

    async def parked() -> bool:
        row = await app.store.get_instance(handle.id)
        return row is not None and row.state is State.WAITING and not app.worker.runs

    await eventually(parked)
    await advance(app, 3601)
    await eventually(read.is_set)
    await eventually(parked)
    assert tries == [1, 2]
