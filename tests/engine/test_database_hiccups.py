"""One call that the database does not answer: waited for or taken up again, whoever made it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.errors import StorageUnavailableError
from edda.storage.rows import ClaimedInstance
from edda.workflow import workflow
from tests.engine.conftest import MakeApp
from tests.support.databases import Database


@activity
async def add(ctx: WorkflowContext, one: int, two: int) -> int:
    return one + two


@workflow
async def adding(ctx: WorkflowContext) -> int:
    return await add(ctx, 1, 2)


def fail_first(real: Callable[..., Any], error: Exception, times: int = 1) -> tuple[list[int], Any]:
    """The method; its first calls raise."""
    calls: list[int] = []

    async def method(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return await real(*args, **kwargs)

    return calls, method


@pytest.mark.parametrize("name", ["open", "migrate", "declare_triggers", "now", "register_worker"])
async def test_a_database_that_goes_away_in_the_middle_of_the_start_is_waited_for(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    app = EddaApp("test", sqlite_database.url, workflows=[adding])
    calls, method = fail_first(getattr(app.store, name), StorageUnavailableError("gone"), 2)
    monkeypatch.setattr(app.store, name, method)
    async with app:
        assert len(calls) >= 3
        assert app.waiting_for is None
        assert await app.handle(await adding.start()).result(timeout=20) == 3


async def test_waiting_for_a_result_waits_for_the_database(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await make_app(adding)
    handle = await adding.submit()
    calls, method = fail_first(app.store.get_instance, StorageUnavailableError("gone"), 2)
    monkeypatch.setattr(app.store, "get_instance", method)
    assert await handle.result(timeout=20) == 3
    assert len(calls) >= 3


async def test_a_flush_that_fails_as_no_store_should_is_written_all_the_same(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = await make_app(adding)
    calls, method = fail_first(app.store.flush, RuntimeError("a bug"))
    monkeypatch.setattr(app.store, "flush", method)
    assert await app.handle(await adding.start()).result(timeout=20) == 3
    assert len(calls) >= 2
    assert "flush_failed" in caplog.text


async def test_a_claim_that_comes_true_after_it_was_given_up_is_found(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is lost while the statement is still on its way: it is carried out when nobody waits for it."""
    app = await make_app(adding, lease_seconds=1.5)
    real_claim, real_owned = app.store.claim, app.store.owned
    given_up: list[tuple[Any, ...]] = []
    asked = asyncio.Event()

    async def claim(*args: Any) -> list[ClaimedInstance]:
        if not given_up:
            given_up.append(args)
            raise StorageUnavailableError("gone")
        # Until it has come true nobody else finds anything.
        return [] if not arrived.done() else await real_claim(*args)

    async def owned(worker: str) -> list[ClaimedInstance]:
        found = await real_owned(worker)
        asked.set()
        return found

    async def arrive_late() -> list[ClaimedInstance]:
        await asked.wait()
        await submitted.wait()
        return await real_claim(*given_up[0])

    submitted = asyncio.Event()
    arrived = asyncio.create_task(arrive_late())
    monkeypatch.setattr(app.store, "claim", claim)
    monkeypatch.setattr(app.store, "owned", owned)
    client = await make_app(adding, work=False)
    handle = await client.submit(adding)
    app.worker.kick()
    submitted.set()
    assert len(await arrived) == 1
    assert await handle.result(timeout=20) == 3
