"""``@workflow(version=...)``: an instance stays on the version it was started on; new ones take the current one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from edda.activity import activity
from edda.cli.main import app as command
from edda.context import WorkflowContext
from edda.errors import ConfigurationError
from edda.waits import wait_event
from edda.workflow import Workflow, workflow
from tests.engine.conftest import MakeApp
from tests.engine.events import event
from tests.support.databases import Database
from tests.support.eventually import eventually


@activity
async def step(ctx: WorkflowContext, version: str | None) -> str | None:
    return version


def order(version: str | None, on: str | None = None, key: str | None = None) -> Workflow[Any, Any]:
    async def code(ctx: WorkflowContext) -> str | None:
        await step(ctx, version)
        await wait_event(ctx, "go")
        return version

    return workflow(name="order", version=version, on=on, key=key)(code)


async def test_each_instance_ends_on_the_version_it_was_started_on(make_app: MakeApp) -> None:
    one = order("1")
    app = await make_app(one)
    started = await one.start()
    await app.shutdown()

    one, two = order("1"), order("2")
    app = await make_app(one, two)
    also = await two.start()
    await app.deliver([event("go"), event("go")])
    assert await app.handle(started).result(timeout=20) == "1"
    assert await app.handle(also).result(timeout=20) == "2"


async def test_a_process_without_the_version_leaves_its_instances_to_one_that_has_it(
    make_app: MakeApp,
) -> None:
    one, two = order("1"), order("2")
    app = await make_app(one)
    started = await one.start()
    await app.shutdown()

    app = await make_app(two)
    also = await two.start()
    await app.deliver(event("go"))
    assert await app.handle(also).result(timeout=20) == "2"
    assert await app.handle(started).status() == "running"  # woken, and claimed by nobody
    with pytest.raises(TimeoutError):
        await app.handle(started).result(timeout=0.3)
    await app.shutdown()

    app = await make_app(two, order("1"))
    assert await app.handle(started).result(timeout=20) == "1"


async def test_an_instance_without_a_version_runs_on_the_code_that_is_there(make_app: MakeApp) -> None:
    async def code(ctx: WorkflowContext) -> str:
        await wait_event(ctx, "go")
        return "as ever"

    plain = workflow(name="order")(code)
    app = await make_app(plain)
    started = await plain.start()
    await app.shutdown()

    app = await make_app(workflow(name="order", version="1")(code))
    await app.deliver(event("go"))
    assert await app.handle(started).result(timeout=20) == "as ever"


async def test_events_start_the_version_given_last_also_after_a_keyed_run_of_the_old_one(
    make_app: MakeApp,
) -> None:
    ended: list[str] = []

    def keyed(version: str) -> Workflow[Any, Any]:
        async def code(ctx: WorkflowContext, id: str) -> None:
            if version == "1":
                await wait_event(ctx, "go")
            ended.append(version)

        return workflow(name="order", version=version, on="order.created", key="data.id")(code)

    app = await make_app(keyed("1"))
    await app.deliver(event("order.created", {"id": "a"}))
    await eventually(lambda: waiting(app))
    await app.shutdown()

    app = await make_app(keyed("1"), keyed("2"))
    await app.deliver([event("order.created", {"id": "b"}), event("order.created", {"id": "a"})])
    await eventually(lambda: ended == ["2"])
    await app.deliver(event("go"))
    await eventually(lambda: ended == ["2", "1", "2"])


async def waiting(app: Any) -> bool:
    found = await app.find_instances(status="waiting_for_event")
    return bool(found["instances"])


async def test_one_version_twice_is_refused(make_app: MakeApp) -> None:
    with pytest.raises(ConfigurationError, match="version="):
        await make_app(order("1"), order("1"))


async def test_operators_see_which_versions_are_still_needed(make_app: MakeApp, database: Database) -> None:
    def seen(*options: str) -> str:
        result = CliRunner().invoke(command, ["versions", "--database-url", database.url, *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    one, two = order("1"), order("2")
    app = await make_app(one, two)
    for release in (one, one, two):
        await release.start()
    found = json.loads(await asyncio.to_thread(seen, "--json"))
    assert [(row["workflow"], row["version"], row["instances"]) for row in found] == [
        ("order", "1", 2),
        ("order", "2", 1),
    ]
    assert "order" in await asyncio.to_thread(seen)
    await app.deliver([event("go") for _ in range(3)])
    await eventually(lambda: nothing_alive(app))
    assert "no old code is needed" in await asyncio.to_thread(seen)


async def nothing_alive(app: Any) -> bool:
    return not await app.store.live_versions()
