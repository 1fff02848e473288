"""Invariant 2: a result is committed before the workflow sees it, and before anything that follows from it begins."""

from __future__ import annotations

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.waits import sleep, wait_event
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event

apps: list[EddaApp] = []


async def recorded(instance_id: str) -> list[str]:
    return [record.kind for record in await apps[-1].store.get_history(instance_id)]


@activity
async def step(ctx: WorkflowContext) -> None:
    pass


@activity
async def looks(ctx: WorkflowContext) -> list[str]:
    return await recorded(ctx.instance_id)


async def test_a_result_is_in_the_database_when_the_workflow_sees_it(make_app: MakeApp) -> None:
    seen: list[list[str]] = []

    @workflow
    async def looking(ctx: WorkflowContext) -> None:
        for _ in range(3):
            await step(ctx)
            seen.append(await recorded(ctx.instance_id))

    apps.append(await make_app(looking))
    await looking.start()
    assert seen == [["activity"] * count for count in (1, 2, 3)]


async def test_what_an_activity_follows_from_is_in_the_database_when_its_body_begins(
    make_app: MakeApp,
) -> None:
    @workflow
    async def looking(ctx: WorkflowContext) -> list[list[str]]:
        before_event = await looks(ctx)
        await wait_event(ctx, "go")
        after_event = await looks(ctx)
        await sleep(ctx, 0)
        return [before_event, after_event, await looks(ctx)]

    app = await make_app(looking)
    apps.append(app)
    instance_id = await looking.start()
    await app.deliver(event("go"))
    assert await app.handle(instance_id).result() == [
        [],
        ["activity", "event"],
        ["activity", "event", "activity", "timer"],
    ]
