"""What work costs the database, counted on the wire: a flush a step, shared by all that run; idle, next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.storage.contract import Storage
from edda.storage.rows import FlushResult, Turn
from edda.workflow import workflow
from outbox_relays.http import HttpPublisher
from tests.crash.wire import metered
from tests.support.databases import Database
from tests.support.eventually import eventually

#: Round trips of one pure flush.
A_FLUSH = {"sqlite": 1, "postgresql": 1, "mysql": 5, "mariadb": 5}

#: Round trips a second of a process with nothing to do: worker, relay and heartbeat.
IDLE = {"sqlite": 1.0, "postgresql": 0.2, "mysql": 1.0, "mariadb": 1.0}


@activity
async def step(ctx: WorkflowContext, number: int) -> int:
    return number + 1


@workflow
async def five_steps(ctx: WorkflowContext) -> int:
    number = 0
    for _ in range(5):
        number = await step(ctx, number)
    return number


async def test_five_steps_cost_at_most_seven_flushes_and_no_other_statement(database: Database) -> None:
    async with metered(database) as meter, EddaApp("budget", meter.url, workflows=[five_steps]) as app:
        await five_steps.start()  # connections are made and statements are prepared now
        costs = []
        for _ in range(5):
            flushes, before = app.store.flushes, meter.sent.copy()
            await five_steps.start()
            assert app.store.flushes - flushes <= 7
            costs.append(meter.sent - before)
        # The one with no heartbeat or poll in between.
        least = min(costs, key=lambda cost: cost.total())
        assert 5 < least.total() <= 7 * A_FLUSH[database.kind], least


async def test_fifty_at_once_share_their_flushes(database: Database) -> None:
    async with metered(database) as meter:
        app = EddaApp("budget", meter.url, workflows=[five_steps])
        turns = _CountedTurns(app.store)
        app.store = turns
        async with app:
            await asyncio.gather(*(five_steps.start() for _ in range(50)))
            turns.count, flushes, before = 0, app.store.flushes, meter.sent.copy()
            await asyncio.gather(*(five_steps.start() for _ in range(50)))
            flushes = app.store.flushes - flushes
            assert turns.count >= 50 * 6
            assert flushes < turns.count / 5
            # Polls and heartbeats apart, nothing else is sent: twice the flushes is far from one for each turn.
            assert (meter.sent - before).total() <= 2 * A_FLUSH[database.kind] * flushes + 20, (
                meter.sent - before
            )


@pytest.mark.long
async def test_idle_process_costs_next_to_nothing(database: Database) -> None:
    relays = [HttpPublisher("http://127.0.0.1:9/")]
    async with (
        metered(database) as meter,
        EddaApp("idle", meter.url, workflows=[five_steps], relays=relays) as app,
    ):
        await five_steps.start()
        # Until polls have slowed down; then two heartbeats long, of a lease of thirty seconds.
        await _seconds(8)
        before = meter.sent.copy()
        await _seconds(20)
        sent = meter.sent - before
        assert sent.total() <= IDLE[database.kind] * 20, sent
        assert sent.total() >= 1, "not even a heartbeat was counted"
        assert app.ready


async def _seconds(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    await eventually(lambda: loop.time() >= until, timeout=2 * seconds, pause=0.2)


class _CountedTurns:
    def __init__(self, store: Storage) -> None:
        self._store = store
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        self.count += len(turns)
        return await self._store.flush(turns)
