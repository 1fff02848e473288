"""What was handed over cannot be withdrawn: a caller that gives up stops waiting, and what it asked for counts."""

import asyncio

from edda.activity import activity
from edda.context import WorkflowContext
from edda.storage.schema import instances
from edda.workflow import workflow
from tests.interleavings.barrier import Barrier
from tests.interleavings.conftest import MakeApp
from tests.interleavings.raw import Raw
from tests.support.eventually import eventually


async def test_a_start_whose_caller_gave_up_while_it_was_written_runs_all_the_same(
    make_app: MakeApp, raw: Raw, barrier: Barrier
) -> None:
    ran: list[str] = []

    @activity
    async def step(ctx: WorkflowContext) -> None:
        ran.append(ctx.instance_id)

    @workflow
    async def order(ctx: WorkflowContext) -> str:
        await step(ctx)
        return "done"

    app = await make_app(order)
    async with barrier.at(instances, "INSERT"):
        hasty = await barrier.waiting(app.start(order))
        if barrier.stops:
            hasty.cancel()
            await asyncio.wait([hasty])
            assert hasty.cancelled()

    async def outcome() -> object:
        return await raw.scalar(instances.select().with_only_columns(instances.c.output))

    assert await eventually(outcome) == b'"done"'
    assert len(ran) == await raw.count(instances) == 1
