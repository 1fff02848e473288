"""What a workflow does, seen from the one who starts it."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from typing import Any

import pytest
from pydantic import BaseModel

from edda import errors
from edda.activity import activity
from edda.context import WorkflowContext
from edda.retry import RetryExhaustedError, RetryPolicy, TerminalError
from edda.workflow import workflow
from tests.engine.conftest import MakeApp

ONCE = RetryPolicy(max_attempts=1)
QUICK = RetryPolicy(initial_interval=0.01, max_attempts=3)


class Colour(enum.Enum):
    RED = "red"


class Order(BaseModel):
    id: str
    amount: float


@dataclasses.dataclass
class Line:
    sku: str
    count: int


async def test_a_workflow_gives_its_result_and_is_completed(make_app: MakeApp) -> None:
    @activity
    async def double(ctx: WorkflowContext, number: int) -> int:
        return number * 2

    @workflow
    async def doubling(ctx: WorkflowContext, number: int) -> dict[str, int]:
        return {"result": await double(ctx, number)}

    app = await make_app(doubling)
    instance_id = await doubling.start(number=21)

    found = await app.storage.get_instance(instance_id)
    assert found is not None
    assert (found["status"], found["output_data"]) == ("completed", {"result": {"result": 42}})
    assert found["input_data"] == {"number": 21}
    assert await app.handle(instance_id).result() == {"result": 42}


async def test_start_raises_the_workflows_own_exception(make_app: MakeApp) -> None:
    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        raise KeyError("no such order")

    app = await make_app(failing)
    with pytest.raises(KeyError, match="no such order"):
        await failing.start()
    [found] = (await app.find_instances(status="failed"))["instances"]
    assert found["output_data"]["error_type"] == "KeyError"


async def test_activities_results_come_back_as_annotated(make_app: MakeApp) -> None:
    @activity
    async def order(ctx: WorkflowContext, given: Order) -> Order:
        return given

    @activity
    async def lines(ctx: WorkflowContext) -> list[Line]:
        return [Line("a", 1)]

    @activity
    async def colour(ctx: WorkflowContext) -> Colour | None:
        return Colour.RED

    @activity
    async def raw(ctx: WorkflowContext) -> bytes:
        return b"\x00\xff"

    seen: list[Any] = []

    @workflow
    async def typed(
        ctx: WorkflowContext, first: Order, more: list[Order], maybe: Order | None = None
    ) -> Order:
        seen.extend(
            [first, more, maybe, await order(ctx, first), await lines(ctx), await colour(ctx), await raw(ctx)]
        )
        return first

    app = await make_app(typed)
    given = Order(id="o-1", amount=1.5)
    instance_id = await typed.start(first=given, more=[given])
    assert seen == [given, [given], None, given, [Line("a", 1)], Colour.RED, b"\x00\xff"]
    assert await app.handle(instance_id).result() == {"id": "o-1", "amount": 1.5}


async def test_a_single_model_parameter_takes_the_flat_fields(make_app: MakeApp) -> None:
    @workflow
    async def flat(ctx: WorkflowContext, order: Order) -> float:
        return order.amount

    app = await make_app(flat)
    assert await app.handle(await flat.start(id="x", amount=3)).result() == 3.0


async def test_wrong_arguments_are_refused_before_anything_is_stored(make_app: MakeApp) -> None:
    @workflow
    async def picky(ctx: WorkflowContext, number: int) -> None:
        """Takes a number."""

    app = await make_app(picky)
    with pytest.raises(TypeError, match=r"picky.*number"):
        await picky.start(nummer=1)
    with pytest.raises(errors.PayloadError, match="arguments of workflow 'picky'"):
        await picky.start(number=object())
    assert (await app.find_instances())["instances"] == []


async def test_a_result_that_cannot_be_stored_fails_the_activity_with_what_to_do(make_app: MakeApp) -> None:
    @activity(retry_policy=ONCE)
    async def strange(ctx: WorkflowContext) -> object:
        return object()

    @workflow
    async def holder(ctx: WorkflowContext) -> str:
        try:
            await strange(ctx)
        except RetryExhaustedError as error:
            return str(error.__cause__)
        return "stored"

    app = await make_app(holder)
    assert "result of activity 'strange'" in await app.handle(await holder.start()).result()


async def test_a_failing_activity_is_retried_then_exhausted_with_its_cause(make_app: MakeApp) -> None:
    tries: list[int] = []

    @activity(retry_policy=QUICK)
    async def flaky(ctx: WorkflowContext) -> None:
        tries.append(1)
        raise ValueError("not today")

    @workflow
    async def persistent(ctx: WorkflowContext) -> None:
        await flaky(ctx)

    await make_app(persistent)
    with pytest.raises(
        RetryExhaustedError, match="flaky failed after 3 attempts: ValueError: not today"
    ) as caught:
        await persistent.start()
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(tries) == 3


async def test_an_activity_that_recovers_is_recorded_once(make_app: MakeApp) -> None:
    tries: list[int] = []

    @activity(retry_policy=QUICK)
    async def second_time_lucky(ctx: WorkflowContext) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError
        return len(tries)

    @workflow
    async def lucky(ctx: WorkflowContext) -> int:
        return await second_time_lucky(ctx)

    app = await make_app(lucky)
    instance_id = await lucky.start()
    assert await app.handle(instance_id).result() == 2
    assert [record["kind"] for record in await app.storage.get_history(instance_id)] == ["activity"]


async def test_a_terminal_error_is_not_retried_and_comes_as_it_is(make_app: MakeApp) -> None:
    tries: list[int] = []

    @activity
    async def refused(ctx: WorkflowContext) -> None:
        tries.append(1)
        raise TerminalError("card refused")

    @workflow
    async def paying(ctx: WorkflowContext) -> None:
        await refused(ctx)

    await make_app(paying)
    with pytest.raises(TerminalError, match="card refused"):
        await paying.start()
    assert tries == [1]


async def test_sync_activities_run_beside_the_event_loop(make_app: MakeApp) -> None:
    import threading

    @activity
    def where(ctx: WorkflowContext) -> str:
        return threading.current_thread().name

    @workflow
    async def threaded(ctx: WorkflowContext) -> str:
        return await where(ctx)

    app = await make_app(threaded)
    assert (await app.handle(await threaded.start()).result()).startswith("edda-activity")


async def test_gathered_activities_run_at_once_and_keep_their_results_apart(make_app: MakeApp) -> None:
    together = asyncio.Barrier(3)

    @activity
    async def meet(ctx: WorkflowContext, number: int) -> int:
        await together.wait()
        return number

    @workflow
    async def gathering(ctx: WorkflowContext) -> list[int]:
        return await asyncio.gather(*(meet(ctx, number) for number in range(3)))

    app = await make_app(gathering)
    assert await app.handle(await gathering.start()).result() == [0, 1, 2]


async def test_a_task_group_of_activities_cancels_the_rest_when_one_fails(make_app: MakeApp) -> None:
    cancelled = asyncio.Event()

    @activity(retry_policy=ONCE)
    async def fails(ctx: WorkflowContext) -> None:
        raise ValueError("boom")

    @activity
    async def endless(ctx: WorkflowContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    @workflow
    async def grouped(ctx: WorkflowContext) -> str:
        said = "silent"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(endless(ctx))
                group.create_task(fails(ctx))
        except* RetryExhaustedError:
            said = "told"
        return said

    app = await make_app(grouped)
    assert await app.handle(await grouped.start()).result() == "told"
    await cancelled.wait()


async def test_submit_returns_at_once_and_the_handle_gives_the_result(make_app: MakeApp) -> None:
    gate = asyncio.Event()

    @activity
    async def gated(ctx: WorkflowContext) -> str:
        await gate.wait()
        return "through"

    @workflow
    async def waiting(ctx: WorkflowContext) -> str:
        return await gated(ctx)

    await make_app(waiting)
    handle = await waiting.submit()
    assert await handle.status() == "running"
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.05)
    gate.set()
    assert await handle.result(timeout=10) == "through"


async def test_a_chosen_id_starts_once(make_app: MakeApp) -> None:
    @workflow
    async def single(ctx: WorkflowContext) -> str:
        return ctx.instance_id

    await make_app(single)
    assert await single.options(id="only-one").start() == "only-one"
    with pytest.raises(errors.InstanceExistsError, match="only-one"):
        await single.options(id="only-one").start()
    with pytest.raises(errors.InstanceExistsError):
        await single.options(id="only-one").submit()
    with pytest.raises(errors.ConfigurationError, match="printable ASCII"):
        await single.options(id="with blank").start()


async def test_an_idempotency_key_gives_the_first_instance_again(make_app: MakeApp) -> None:
    runs: list[str] = []

    @activity
    async def run(ctx: WorkflowContext) -> None:
        runs.append(ctx.instance_id)

    @workflow
    async def keyed(ctx: WorkflowContext) -> None:
        await run(ctx)

    await make_app(keyed)
    first = await keyed.options(idempotency_key="order 42/ü").start()
    second = await keyed.options(idempotency_key="order 42/ü").start()
    third = await keyed.options(idempotency_key="order 42/ü").submit()
    assert first == second == third.id
    assert runs == [first]


async def test_awaiting_what_nothing_will_end_fails_with_the_reason(make_app: MakeApp) -> None:
    @workflow
    async def stuck(ctx: WorkflowContext) -> None:
        await asyncio.Event().wait()

    await make_app(stuck)
    with pytest.raises(RuntimeError, match="nothing will ever end"):
        await stuck.start()


async def test_workflow_code_may_await_the_event_loop_itself(make_app: MakeApp) -> None:
    @workflow
    async def impatient(ctx: WorkflowContext) -> str:
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            return await asyncio.to_thread(lambda: "from a thread")

    app = await make_app(impatient)
    assert await app.handle(await impatient.start()).result() == "from a thread"


async def test_two_workflows_of_one_name_in_one_app_are_refused(make_app: MakeApp) -> None:
    @workflow(name="same")
    async def one(ctx: WorkflowContext) -> None:
        """First."""

    @workflow(name="same")
    async def two(ctx: WorkflowContext) -> None:
        """Second."""

    with pytest.raises(errors.ConfigurationError, match=r"two workflows are called 'same'.*@workflow\(name="):
        await make_app(one, two)
