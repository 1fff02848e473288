"""How long an attempt of an activity may take."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edda import ActivityTimeoutError, RetryExhaustedError, RetryPolicy, WorkflowContext, activity, workflow
from edda.errors import ConfigurationError
from tests.engine.conftest import MakeApp
from tests.support.eventually import eventually

tries: list[str] = []
never = threading.Event()

QUICK = RetryPolicy(0.01, 1, 0.01, max_attempts=2)


@activity(retry_policy=QUICK, timeout_seconds=0.05)
async def slow_at_first(ctx: WorkflowContext) -> str:
    tries.append("begun")
    if len(tries) == 1:
        try:
            await asyncio.sleep(60)
        finally:
            assert asyncio.current_task() is not None
    return "done"


@workflow
async def impatient(ctx: WorkflowContext) -> str:
    return await slow_at_first(ctx)


async def test_an_attempt_that_takes_too_long_is_cancelled_and_tried_again(make_app: MakeApp) -> None:
    tries.clear()
    app = await make_app(impatient)
    assert await app.handle(await impatient.start()).result() == "done"
    assert tries == ["begun", "begun"]


@activity(retry_policy=QUICK, timeout_seconds=0.05)
def stuck_in_thread(ctx: WorkflowContext) -> None:
    while not ctx.cancelled and not never.wait(0.01):
        pass
    tries.append("saw it")


@workflow
async def stuck(ctx: WorkflowContext) -> None:
    await stuck_in_thread(ctx)


async def test_a_thread_is_told_that_its_time_is_up(make_app: MakeApp) -> None:
    tries.clear()
    await make_app(stuck)
    with pytest.raises(RetryExhaustedError) as raised:
        await stuck.start()
    cause = raised.value.__cause__
    assert isinstance(cause, ActivityTimeoutError)
    assert (cause.activity, cause.timeout_seconds) == ("stuck_in_thread", 0.05)
    await eventually(lambda: tries == ["saw it", "saw it"])


@activity(retry_policy=RetryPolicy(max_attempts=1), timeout_seconds=60)
async def times_out_by_itself(ctx: WorkflowContext) -> None:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)


@workflow
async def own_timeout(ctx: WorkflowContext) -> None:
    await times_out_by_itself(ctx)


async def test_a_timeout_of_the_bodys_own_stays_what_it_is(make_app: MakeApp) -> None:
    await make_app(own_timeout)
    with pytest.raises(RetryExhaustedError) as raised:
        await own_timeout.start()
    assert type(raised.value.__cause__) is TimeoutError


def test_a_timeout_that_leaves_no_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="above 0"):

        @activity(timeout_seconds=0)
        async def never_ends(ctx: WorkflowContext) -> None: ...


@workflow
async def numbered(ctx: WorkflowContext, number: int) -> int:
    return number


async def test_many_starts_at_once(make_app: MakeApp) -> None:
    app = await make_app(numbered)
    handles = await numbered.start_many({"number": number} for number in range(1_200))
    assert [await handle.result(timeout=60) for handle in handles] == list(range(1_200))
    with pytest.raises(TypeError, match="nonsense"):
        await app.start_many(numbered, [{"number": 1}, {"number": 2, "nonsense": 2}])
    assert (await app.store.counts())["instances"] == 1_200
