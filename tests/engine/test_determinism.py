"""Invariant 11: code that does not do again what the history says pauses its instance, and nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from edda.activity import activity
from edda.context import WorkflowContext
from edda.retry import RetryExhaustedError, RetryPolicy, TerminalError
from edda.storage.rows import State
from edda.waits import sleep, wait_event
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event
from tests.support.eventually import eventually

ONCE = RetryPolicy(max_attempts=1)

Body = Callable[[WorkflowContext], Coroutine[Any, Any, Any]]


@activity
async def charge(ctx: WorkflowContext, amount: int = 1) -> str:
    return f"charged {amount}"


@activity
async def refund(ctx: WorkflowContext) -> str:
    return "refunded"


async def go(ctx: WorkflowContext) -> None:
    await wait_event(ctx, "go")


async def charged_then_waits(ctx: WorkflowContext) -> str:
    result = await charge(ctx)
    await go(ctx)
    return result


async def refunded_then_waits(ctx: WorkflowContext) -> None:
    await refund(ctx)
    await go(ctx)


async def sleeps_then_waits(ctx: WorkflowContext) -> None:
    await sleep(ctx, 1)
    await go(ctx)


async def ends_at_once(ctx: WorkflowContext) -> None:
    pass


async def waits_for_something_else(ctx: WorkflowContext) -> None:
    await charge(ctx)
    await wait_event(ctx, "other")


async def charges_more(ctx: WorkflowContext) -> None:
    await charge(ctx, 2)
    await go(ctx)


@pytest.mark.parametrize(
    ("body", "expected", "got"),
    [
        (refunded_then_waits, "activity 'charge'", "activity 'refund'"),
        (sleeps_then_waits, "activity 'charge'", "sleep 'sleep'"),
        (ends_at_once, "activity 'charge'", "ends"),
        (waits_for_something_else, "wait_event 'go'", "wait_event 'other'"),
        (
            charges_more,
            "activity 'charge' with the recorded arguments",
            "activity 'charge' with other arguments",
        ),
    ],
)
async def test_code_that_differs_from_its_history_is_paused_and_goes_on_once_it_is_repaired(
    make_app: MakeApp, body: Body, expected: str, got: str
) -> None:
    bodies: list[Body] = [charged_then_waits]

    @workflow
    async def changing(ctx: WorkflowContext) -> Any:
        return await bodies[0](ctx)

    app = await make_app(changing)
    instance_id = await changing.start()
    before = await app.store.get_history(instance_id)

    bodies[0] = body
    await app.deliver(event("go"))

    async def paused() -> bool:
        row = await app.store.get_instance(instance_id)
        return row is not None and row.state is State.PAUSED

    await eventually(paused)
    assert await app.store.get_history(instance_id) == before
    found = await app.storage.get_instance(instance_id)
    assert found is not None
    message = found["output_data"]["error_message"]
    assert expected in message
    assert got in message
    if "ends" not in got:
        assert __file__ in message

    bodies[0] = charged_then_waits
    handle = app.handle(instance_id)
    assert await handle.resume()
    assert await handle.result() == "charged 1"
    assert not await handle.resume()


async def test_other_arguments_are_only_warned_of_in_production(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: list[Body] = [charged_then_waits]

    @workflow
    async def changing(ctx: WorkflowContext) -> Any:
        return await bodies[0](ctx)

    app = await make_app(changing, strict_arguments=False)
    instance_id = await changing.start()
    bodies[0] = charges_more
    await app.deliver(event("go"))
    await app.handle(instance_id).result()
    assert "arguments_changed_on_replay" in caplog.text


class Declined(Exception):  # noqa: N818, as users name theirs
    def __init__(self, code: int, *, card: str) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.card = card


class Broken(TerminalError):  # noqa: N818, as users name theirs
    pass


@dataclasses.dataclass
class Seen:
    live: list[str] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    "error", [Declined(7, card="4711"), Broken("for good"), KeyError("a", 1), TimeoutError()]
)
async def test_an_exception_replays_as_itself(make_app: MakeApp, error: Exception) -> None:
    seen: list[tuple[Any, ...]] = []

    @activity(retry_policy=ONCE)
    async def fails(ctx: WorkflowContext) -> None:
        raise error

    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        try:
            await fails(ctx)
        except (RetryExhaustedError, TerminalError) as raised:
            cause = raised.__cause__ or raised
            seen.append((type(raised), str(raised), type(cause), str(cause), cause.args, vars(cause)))
        await go(ctx)

    app = await make_app(failing)
    instance_id = await failing.start()
    await app.deliver(event("go"))
    await app.handle(instance_id).result()
    live, replayed = seen
    assert live == replayed
    assert live[2] is type(error)


async def test_the_workflows_own_exception_is_raised_again_by_its_handle(make_app: MakeApp) -> None:
    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        await go(ctx)
        raise Declined(7, card="4711")

    app = await make_app(failing)
    instance_id = await failing.start()
    await app.deliver(event("go"))
    with pytest.raises(Declined, match="declined with 7") as caught:
        await app.handle(instance_id).result()
    assert (caught.value.code, caught.value.card) == (7, "4711")
