"""How long things are kept, as users say it; and that a process sees to it by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from edda.app import EddaApp
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.errors import ConfigurationError
from edda.inbox import retention
from edda.inbox.retention import chunks_of, in_force, sweep_once
from edda.retention import Retention
from edda.storage.contract import Storage
from edda.storage.rows import Chunk, Expiring, Keeps, Swept, Verdict
from edda.waits import sleep, wait_event
from edda.workflow import workflow
from tests.inbox import given
from tests.support.databases import Database
from tests.support.eventually import eventually

DAY = 86_400_000_000


@workflow(name="retained_order", on="retained.order")
async def order(ctx: WorkflowContext, number: int) -> int:
    return number


def ordered(number: int) -> CloudEvent:
    return given.event(f"order-{number}", type="retained.order", data=b'{"number": %d}' % number)


# ---------------------------------------------------------------------------------------------- what is kept


def test_by_default_a_week_of_events_is_kept_identities_longer_and_what_was_done_for_ever() -> None:
    assert Retention().keeps() == Keeps(7 * DAY, 14 * DAY, None, None)


def test_message_retention_days_says_it_of_events_and_identities_are_never_shorter() -> None:
    assert Retention.of_days(3).keeps() == Keeps(3 * DAY, 14 * DAY, None, None)
    assert Retention.of_days(30).keeps() == Keeps(30 * DAY, 30 * DAY, None, None)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"events": timedelta(days=15)}, r"identities=datetime.timedelta\(days=15\) or longer, or None"),
        ({"events": None}, "Use identities=None"),
        ({"events": timedelta()}, r"events=timedelta\(days=30\), or None for ever"),
        ({"instances": timedelta(days=-1)}, r"instances=timedelta\(days=30\)"),
        ({"dead_letters": 30}, r"dead_letters=timedelta\(days=30\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_works(wrong: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        Retention(**wrong)


def test_an_app_takes_retention_or_days_and_not_both() -> None:
    assert EddaApp("a", "memory:", message_retention_days=10).retention.events == timedelta(days=10)
    kept = Retention(instances=timedelta(days=30))
    assert EddaApp("a", "memory:", retention=kept).retention is kept
    with pytest.raises(ConfigurationError, match=r"retention=Retention\(events="):
        EddaApp("a", "memory:", message_retention_days=10, retention=kept)
    with pytest.raises(ConfigurationError, match="message_retention_days=0 must be above zero"):
        EddaApp("a", "memory:", message_retention_days=0)


def test_of_what_apps_share_the_longest_time_counts_and_instances_are_each_ones_own() -> None:
    keeps = {"a": Keeps(7 * DAY, 14 * DAY, 30 * DAY, None), "b": Keeps(9 * DAY, 10 * DAY, None, DAY)}
    assert in_force(keeps) == Keeps(9 * DAY, 14 * DAY, None, None)
    assert chunks_of(keeps, 100 * DAY) == [
        Chunk(Expiring.EVENTS, 91 * DAY),
        Chunk(Expiring.IDENTITIES, 86 * DAY),
        Chunk(Expiring.INSTANCES, 0, apps=(("a", 70 * DAY),)),
    ]
    assert chunks_of({}, 100 * DAY) == []


# ---------------------------------------------------------------------------------------------- sweeping


@pytest.fixture
async def app(database: Database) -> AsyncIterator[EddaApp]:
    app = EddaApp("retained", database.url, workflows=[order], run_retention=False, lease_seconds=60,
                  retention=Retention(instances=timedelta(days=1)))  # fmt: skip
    async with app:
        yield app


async def ended(store: Storage, count: int) -> None:
    async def all_ended() -> bool:
        return (await store.counts()).get("instances.completed", 0) == count

    await eventually(all_ended, 30)


async def test_a_topic_that_is_read_again_after_finished_instances_were_removed_starts_nothing(
    app: EddaApp,
) -> None:
    """Identities outlive what they are of."""
    topic = [ordered(number) for number in range(20)]
    await app.deliver(topic)
    await ended(app.store, 20)
    app.store.clock_offset_us += 8 * DAY
    report = await sweep_once(app.store)
    assert report is not None
    assert (report.removed[Expiring.INSTANCES], report.removed[Expiring.EVENTS]) == (20, 20)
    assert report.removed[Expiring.IDENTITIES] == 0
    results = await app.deliver(topic)
    assert {result.verdict for result in results} == {Verdict.DUPLICATE}
    counts = await app.store.counts()
    assert (counts["instances"], counts["events"], counts["history"]) == (0, 0, 0)


@workflow(name="retained_payment")
async def payment(ctx: WorkflowContext) -> str:
    received = await wait_event(ctx, "retained.paid")
    await sleep(ctx, 40 * 86_400)
    return f"{received.id}, {(await wait_event(ctx, 'retained.shipped', match={'data.of': 1})).id}"


async def test_what_waits_while_its_workers_are_away_for_weeks_receives_its_events(
    database: Database,
) -> None:
    """``edda-framework 0.16``: retention deleted live rows."""
    async with EddaApp("paying", database.url, workflows=[payment], run_retention=False) as app:
        run = await app.start(payment)
    shipped = given.event(
        "shipped", type="retained.shipped", data=b'{"of": 1}', extensions={"eddainstanceid": run}
    )
    async with EddaApp("gateway", database.url, workflows=[], work=False) as gateway:
        await gateway.deliver([given.event("paid", type="retained.paid"), given.event("of nobody")])
        await gateway.deliver(shipped)
        gateway.store.clock_offset_us += 30 * DAY
        report = await sweep_once(gateway.store)
        assert report is not None
        assert (report.removed[Expiring.EVENTS], report.kept[Expiring.EVENTS]) == (1, 2)
    app = EddaApp("paying", database.url, workflows=[payment], run_retention=False)
    app.store.clock_offset_us = 30 * DAY
    async with app:
        handle = app.handle(run)

        async def sleeps() -> bool:
            return await handle.status() == "waiting_for_timer"

        await eventually(sleeps, 20)
        report = await sweep_once(app.store)
        assert report is not None
        assert (report.removed[Expiring.EVENTS], report.kept[Expiring.EVENTS]) == (1, 1)
        app.store.clock_offset_us += 41 * DAY
        apps, _ = await app.store.fire_timers()
        app.worker.woken(apps)
        assert await handle.result(20) == "paid, shipped"
        report = await sweep_once(app.store)
        assert report is not None
        assert report.removed[Expiring.EVENTS] == 1


async def test_a_process_sweeps_by_itself(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """``edda-framework 0.16``: retention never ran."""
    monkeypatch.setattr(retention, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(retention, "EVERY_SECONDS", 0.05)
    async with EddaApp("retained", database.url, workflows=[order], message_retention_days=1) as app:
        for number in range(2):
            await app.deliver(given.event(f"e-{number}"))
            app.store.clock_offset_us += 2 * DAY

            async def gone() -> bool:
                return (await app.store.counts())["events"] == 0

            await eventually(gone, 20)


async def test_two_processes_sweep_in_turns(app: EddaApp, monkeypatch: pytest.MonkeyPatch) -> None:
    async with EddaApp("another", app.db_url, workflows=[], run_retention=False) as other:
        await app.deliver([given.event(f"e-{number}") for number in range(5)])
        for one in (app, other):
            one.store.clock_offset_us += 8 * DAY
        reports = await asyncio.gather(*(sweep_once(one.store, every_seconds=600) for one in (app, other)))
        assert [report for report in reports if report] != []
        assert sum(report.removed[Expiring.EVENTS] for report in reports if report) == 5
        assert await sweep_once(app.store, every_seconds=600) is None
        assert await sweep_once(other.store, every_seconds=600) is None


async def test_the_most_careful_of_the_apps_of_a_database_is_heard(app: EddaApp) -> None:
    careful = Retention(events=timedelta(days=30), identities=timedelta(days=30))
    async with EddaApp("careful", app.db_url, workflows=[], run_retention=False, retention=careful):
        pass
    await app.deliver([given.event("e")])
    app.store.clock_offset_us += 8 * DAY
    report = await sweep_once(app.store)
    assert report is not None
    assert report.removed[Expiring.EVENTS] == 0
    await app.store.declare_retention("careful", None)
    report = await sweep_once(app.store)
    assert report is not None
    assert report.removed[Expiring.EVENTS] == 1


async def test_a_sweep_that_has_nothing_to_do_costs_few_statements(app: EddaApp) -> None:
    await app.deliver([ordered(number) for number in range(20)])
    await ended(app.store, 20)
    before = app.store.statements
    assert await sweep_once(app.store, every_seconds=600) is not None
    swept = app.store.statements - before
    before = app.store.statements
    assert await sweep_once(app.store, every_seconds=600) is None
    asked = app.store.statements - before
    # Every ten minutes one process sweeps and the others ask: a hundredth of what an idle process may.
    assert swept <= 60, swept
    assert asked <= 6, asked


async def test_a_sweeper_that_stops_in_the_middle_leaves_the_rest_to_the_next(
    app: EddaApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await app.deliver([given.event(f"e-{number}") for number in range(1_500)])
    app.store.clock_offset_us += 8 * DAY
    sweep = app.store.sweep
    chunks = 0

    async def stopped(*args: Any) -> Swept | None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise asyncio.CancelledError
        return await sweep(*args)

    monkeypatch.setattr(app.store, "sweep", stopped)
    with pytest.raises(asyncio.CancelledError):
        await sweep_once(app.store)
    assert (await app.store.counts())["events"] == 500
    monkeypatch.setattr(app.store, "sweep", sweep)
    assert await sweep_once(app.store) is None
    app.store.clock_offset_us += retention.LEASE_US
    report = await sweep_once(app.store)
    assert report is not None
    assert report.removed[Expiring.EVENTS] == 500
