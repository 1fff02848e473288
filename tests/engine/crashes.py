"""Crashes at every point where a run commits: the process is gone, another one goes on from what the database has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import pytest

from edda.app import EddaApp
from edda.engine.session import ActivitySession
from edda.errors import StorageUnavailableError
from edda.storage.rows import FlushResult, Turn
from edda.workflow import Workflow
from tests.support.eventually import eventually

How = Literal["before", "after", "lost"]

#: Before a commit, after it, or after the one behind a commit whose answer was lost, so that it was sent again.
WAYS: tuple[How, ...] = ("before", "after", "lost")


@dataclass(frozen=True, slots=True)
class Crash:
    """At which commit of the first process, counted from 1."""

    number: int
    how: How


class _Commits:
    """Counts the commits of one process, and stops it for ever at the one that is asked for."""

    def __init__(self, crash: Crash | None) -> None:
        self.count = 0
        self.crash = crash
        self.crashed = asyncio.Event()

    async def around(
        self, commit: Callable[[], Awaitable[Any]], give_up: Callable[[], Awaitable[Any]] | None = None
    ) -> Any:
        self.count += 1
        here = self.crash is not None and self.count == self.crash.number
        how = self.crash.how if self.crash is not None else None
        if here and how == "before":
            if give_up is not None:
                await give_up()
            await self._stop()
        answer = await commit()
        if here and how == "lost" and give_up is None:
            raise StorageUnavailableError("the answer is lost")
        # The next one is the same again; what the code did with its answer is in the one behind it.
        if here or (how == "lost" and self.crash is not None and self.count == self.crash.number + 2):
            await self._stop()
        return answer

    async def _stop(self) -> None:
        self.crashed.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def _watched(app: EddaApp, commits: _Commits) -> AsyncIterator[None]:
    flush, finish = app.store.flush, ActivitySession.finish

    async def flushing(turns: Sequence[Turn]) -> FlushResult:
        result: FlushResult = await commits.around(lambda: flush(turns))
        return result

    async def finishing(session: ActivitySession) -> None:
        # A server rolls back what a dead process has left open.
        await commits.around(lambda: finish(session), session.close)

    with patch.object(app.store, "flush", flushing), patch.object(ActivitySession, "finish", finishing):
        yield


def apps_of(url: str, program: Workflow[Any, Any]) -> Callable[[], Awaitable[EddaApp]]:
    """Makes one process after the other: ``shutdown_timeout=0``, so that shutting down drops everything."""

    async def make_app() -> EddaApp:
        app = EddaApp(
            "engine", url, workflows=[program], shutdown_timeout=0, strict_arguments=True, lease_seconds=3
        )
        await app.initialize()
        return app

    return make_app


async def run_through(
    make_app: Callable[[], Awaitable[EddaApp]],
    program: Workflow[Any, Any],
    crash: Crash | None,
    prepare: Callable[[EddaApp], Awaitable[Any]] | None = None,
) -> tuple[Any, int]:
    """The program's result, and how many commits its first process made.

    ``make_app`` is one of ``apps_of``; what it makes is shut down again.
    """
    commits = _Commits(crash)
    app = await make_app()
    async with _watched(app, commits):
        if prepare is not None:
            await prepare(app)
        starting = asyncio.create_task(app.submit(program))
        crashed = asyncio.create_task(commits.crashed.wait())
        ending = asyncio.create_task(_result(app))
        try:
            await asyncio.wait([crashed, ending], return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return ending.result(), commits.count
            await app.shutdown()
        finally:
            for task in (starting, crashed, ending):
                task.cancel()
            await asyncio.gather(starting, crashed, ending, return_exceptions=True)
            await app.shutdown()
    again = await make_app()
    try:
        if not (await again.find_instances())["instances"]:
            await again.submit(program)  # nothing of it was kept: who has started it starts it again
        return await _result(again), commits.count
    finally:
        await again.shutdown()


async def _result(app: EddaApp) -> Any:
    async def at_rest() -> dict[str, Any] | None:
        found = (await app.find_instances())["instances"]
        return found[0] if found and found[0]["status"] in {"completed", "failed", "paused"} else None

    found = await eventually(at_rest, pause=0.005)
    if found["status"] == "paused":
        pytest.fail(f"does not do again what it did: {found}")
    return await app.handle(found["instance_id"]).result()
