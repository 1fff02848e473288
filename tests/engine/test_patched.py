"""``ctx.patched``: code is changed while instances of it are alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.errors import TransactionError
from edda.history import records as kinds
from edda.retry import RetryExhaustedError, RetryPolicy
from edda.storage.rows import State
from edda.transactional import send_event_transactional
from edda.waits import sleep, wait_event
from edda.workflow import Workflow, workflow
from tests.engine.conftest import MakeApp
from tests.engine.crashes import WAYS, Crash, How, apps_of, run_through
from tests.engine.events import event
from tests.support.databases import Database
from tests.support.eventually import eventually

Body = Callable[[WorkflowContext], Coroutine[Any, Any, Any]]


@activity
async def charge(ctx: WorkflowContext) -> str:
    return "charged"


@activity
async def ask(ctx: WorkflowContext) -> str:
    return "asked"


@activity
async def book(ctx: WorkflowContext) -> str:
    await ctx.session.execute(sa.text("SELECT 1"))
    return "booked"


@activity(retry_policy=RetryPolicy(max_attempts=1))
async def fails(ctx: WorkflowContext) -> None:
    raise ValueError("no")


async def go(ctx: WorkflowContext) -> None:
    await wait_event(ctx, "go")


def deployed(body: Body) -> Workflow[Any, Any]:
    """A release of the one workflow of these tests."""

    async def changing(ctx: WorkflowContext) -> Any:
        return await body(ctx)

    return workflow(name="changing")(changing)


# The life of a change, release by release.


async def old(ctx: WorkflowContext) -> str:
    await charge(ctx)
    await go(ctx)
    return "old"


async def changed(ctx: WorkflowContext) -> str:
    way = "old"
    await charge(ctx)
    if ctx.patched("ask-first"):
        await ask(ctx)
        way = "new"
    await go(ctx)
    return way


async def new(ctx: WorkflowContext) -> str:
    await charge(ctx)
    await ask(ctx)
    await go(ctx)
    return "new"


async def test_an_instance_that_has_passed_the_change_goes_the_old_way_on_new_code(make_app: MakeApp) -> None:
    release = deployed(old)
    app = await make_app(release)
    instance_id = await release.start()
    await app.shutdown()

    app = await make_app(deployed(changed))
    await app.deliver(event("go"))
    assert await app.handle(instance_id).result(timeout=20) == "old"
    assert kinds.PATCH not in await recorded(app, instance_id)


async def test_an_instance_that_comes_to_the_change_later_goes_the_new_way_wherever_it_is_replayed(
    make_app: MakeApp,
) -> None:
    release = deployed(changed)
    app = await make_app(release)
    instance_id = await release.start()
    assert await recorded(app, instance_id) == ["activity", kinds.PATCH, "activity"]
    await app.shutdown()

    app = await make_app(deployed(changed))
    await app.deliver(event("go"))
    assert await app.handle(instance_id).result(timeout=20) == "new"


async def test_an_old_instance_that_has_not_come_to_the_change_yet_goes_the_new_way(
    make_app: MakeApp,
) -> None:
    async def waits(ctx: WorkflowContext) -> str:
        await go(ctx)
        return await charge(ctx)

    async def waits_and_asks(ctx: WorkflowContext) -> str:
        await go(ctx)
        return await (ask if ctx.patched("ask") else charge)(ctx)

    release = deployed(waits)
    app = await make_app(release)
    instance_id = await release.start()
    await app.shutdown()
    app = await make_app(deployed(waits_and_asks))
    await app.deliver(event("go"))
    assert await app.handle(instance_id).result(timeout=20) == "asked"


async def test_the_old_way_and_the_call_are_deleted_once_the_old_instances_are_gone(
    make_app: MakeApp,
) -> None:
    release = deployed(changed)
    app = await make_app(release)
    instance_id = await release.start()
    await app.shutdown()

    app = await make_app(deployed(new))
    await app.deliver(event("go"))
    assert await app.handle(instance_id).result(timeout=20) == "new"


async def test_deleting_the_old_way_too_early_pauses_its_instances_and_harms_nobody(
    make_app: MakeApp,
) -> None:
    release = deployed(old)
    app = await make_app(release)
    instance_id = await release.start()
    await app.shutdown()

    app = await make_app(deployed(new))
    await app.deliver(event("go"))

    async def paused() -> bool:
        row = await app.store.get_instance(instance_id)
        return row is not None and row.state is State.PAUSED

    await eventually(paused)
    found = await app.storage.get_instance(instance_id)
    assert found is not None
    assert "ctx.patched" in found["output_data"]["error_message"]
    await app.shutdown()

    app = await make_app(deployed(changed))
    assert await app.handle(instance_id).resume()
    assert await app.handle(instance_id).result(timeout=20) == "old"


async def test_the_first_answer_counts_for_the_whole_run(make_app: MakeApp) -> None:
    async def loops(ctx: WorkflowContext) -> list[str]:
        return [await charge(ctx) for _ in range(2)] + await last(ctx)

    async def loops_changed(ctx: WorkflowContext) -> list[str]:
        return [await (ask if ctx.patched("ask") else charge)(ctx) for _ in range(2)] + await last(ctx, "ask")

    async def last(ctx: WorkflowContext, change: str = "") -> list[str]:
        await go(ctx)
        return [await (ask if change and ctx.patched(change) else charge)(ctx)]

    for first, result in ((loops, ["charged"] * 3), (loops_changed, ["asked"] * 3)):
        release = deployed(first)
        app = await make_app(release)
        instance_id = await release.start()
        await app.shutdown()
        app = await make_app(deployed(loops_changed))
        await app.deliver(event("go"))
        assert await app.handle(instance_id).result(timeout=20) == result
        await app.shutdown()


async def test_a_marker_shares_the_turn_of_the_wait_that_follows(make_app: MakeApp) -> None:
    async def unchanged(ctx: WorkflowContext) -> None:
        await charge(ctx)
        await go(ctx)

    async def marked(ctx: WorkflowContext) -> None:
        await charge(ctx)
        ctx.patched("one")
        ctx.patched("two")
        await go(ctx)

    plain, changed_ = workflow(unchanged), workflow(marked)
    app = await make_app(plain, changed_)
    await plain.start()  # what it waits for is known to this process from here on
    flushes = []
    for one in (plain, changed_):
        before = app.worker.journal.flushes
        await one.start()
        flushes.append(app.worker.journal.flushes - before)
    assert flushes[0] == flushes[1]


async def test_what_no_history_can_keep_is_refused_and_so_is_the_question_in_an_activity(
    make_app: MakeApp,
) -> None:
    raised: list[BaseException] = []

    @activity
    async def asks(ctx: WorkflowContext) -> None:
        with pytest.raises(TransactionError) as caught:
            ctx.patched("change")
        raised.append(caught.value)

    async def refused(ctx: WorkflowContext) -> None:
        for name in ("", "x" * 201, "a\0b"):
            with pytest.raises(ValueError, match="1 to 200 characters"):
                ctx.patched(name)
        await asks(ctx)

    release = deployed(refused)
    app = await make_app(release)
    await app.handle(await release.start()).result()
    assert "may simply be changed" in str(raised[0])


# ---------------------------------------------------------------------------------------------- crashes


async def asks_before_everything(ctx: WorkflowContext) -> list[str | None]:
    """A marker before each thing that can follow it."""
    found: list[str | None] = []
    for change, what in (("1", ask), ("2", book), ("3", charge)):
        found.append(await (what if ctx.patched(change) else fails)(ctx))
    if ctx.patched("4"):
        await sleep(ctx, 0.001)
    if ctx.patched("5"):
        await send_event_transactional(ctx, "told", "/tests", {})
    if ctx.patched("6"):
        async with ctx.transaction():
            await book(ctx)
            found.append(await (book if ctx.patched("7") else fails)(ctx))
    if ctx.patched("8"):
        found += await asyncio.gather(book(ctx), ask(ctx), in_a_task(ctx))
    try:
        async with ctx.transaction():
            if ctx.patched("9"):
                await book(ctx)
            await fails(ctx)
    except RetryExhaustedError:
        found.append("failed")
    return found


async def in_a_task(ctx: WorkflowContext) -> str | None:
    await ask(ctx)
    return await (book if ctx.patched("task") else fails)(ctx)


@pytest.mark.parametrize("how", WAYS)
async def test_a_run_keeps_its_way_after_a_crash_at_any_commit(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, how: How
) -> None:
    release = deployed(asks_before_everything)

    make = apps_of(sqlite_database.url, release)

    async def prepare(app: EddaApp) -> None:
        async with app.storage.engine.begin() as connection:
            for table in ("instances", "history", "waits", "outbox"):
                await connection.execute(sa.text(f"DELETE FROM edda_{table}"))

    expected, commits = await run_through(make, release, None, prepare)
    assert expected == ["asked", "booked", "charged", "booked", "booked", "asked", "booked", "failed"]
    for number in range(1, commits + 1):
        assert (await run_through(make, release, Crash(number, how), prepare))[0] == expected


async def recorded(app: EddaApp, instance_id: str) -> list[str]:
    return [record.kind for record in await app.store.get_history(instance_id)]
