"""``ctx.now()``, ``ctx.random()`` and ``ctx.uuid4()``: the same again in every replay, without a row of their own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.engine.clock import Clock
from edda.retry import RetryExhaustedError, RetryPolicy
from edda.transactional import send_event_transactional
from edda.waits import EventTimeoutError, sleep, wait_event
from edda.workflow import workflow
from tests.engine.clock import advance
from tests.engine.conftest import MakeApp
from tests.engine.crashes import WAYS, Crash, apps_of, run_through
from tests.engine.events import event
from tests.support.databases import Database, temporary_database
from tests.support.eventually import eventually

ONCE = RetryPolicy(max_attempts=1)


@activity
async def step(ctx: WorkflowContext, *seen: Any) -> int:
    return len(seen)


@activity(retry_policy=ONCE)
async def fails(ctx: WorkflowContext, *seen: Any) -> None:
    raise ValueError("no")


@activity
async def book(ctx: WorkflowContext, *seen: Any) -> int:
    await ctx.session.execute(sa.text("SELECT 1"))
    return len(seen)


def draw(ctx: WorkflowContext) -> list[Any]:
    """All there is, as it stands in the history."""
    return [ctx.now().isoformat(), ctx.random().random(), str(ctx.uuid4()), ctx.random().randint(1, 99)]


# ---------------------------------------------------------------------------------------------- what they promise


async def test_time_stands_still_between_results_and_goes_on_with_each(make_app: MakeApp) -> None:
    lives: list[list[datetime]] = []

    @workflow
    async def timed(ctx: WorkflowContext) -> None:
        seen: list[datetime] = []
        lives.append(seen)
        seen.append(ctx.now())
        seen.append(ctx.now())
        await step(ctx)
        seen.append(ctx.now())
        await book(ctx)
        seen.append(ctx.now())
        await send_event_transactional(ctx, "told", "/tests", {})
        seen.append(ctx.now())
        async with ctx.transaction():
            await book(ctx)
            seen.append(ctx.now())
        seen.append(ctx.now())
        try:
            await fails(ctx)
        except RetryExhaustedError:
            seen.append(ctx.now())
        await sleep(ctx, 3600)
        seen.append(ctx.now())
        await wait_event(ctx, "go")
        seen.append(ctx.now())
        try:
            await wait_event(ctx, "never", timeout_seconds=60)
        except EventTimeoutError:
            seen.append(ctx.now())

    app = await make_app(timed)
    before = await app.store.now()
    instance_id = await timed.start()
    await advance(app, 3601)
    await app.storage.get_instance(instance_id)
    await _waiting(app, instance_id, "go")
    accepted = await app.store.now()
    await app.deliver(event("go"))
    await _waiting(app, instance_id, "never")
    await advance(app, 61)
    await app.handle(instance_id).result()

    *_, last = lives
    assert last[0] == last[1]
    assert last == sorted(last)
    assert len(set(last)) >= len(last) - 3  # several things may happen in one microsecond, not many
    assert last[0] >= _time(before) - timedelta(seconds=1)
    slept, received, timed_out = last[-3:]
    assert slept >= last[-4] + timedelta(seconds=3600)
    assert received >= _time(accepted)
    assert timed_out >= received + timedelta(seconds=60)
    assert all(life == last[: len(life)] for life in lives)
    assert len(lives) >= 3


async def test_an_activity_has_the_time_as_it_is_and_numbers_of_its_own(make_app: MakeApp) -> None:
    seen: list[tuple[datetime, float, UUID]] = []

    @activity
    async def looks(ctx: WorkflowContext) -> None:
        seen.append((ctx.now(), ctx.random().random(), ctx.uuid4()))

    @workflow
    async def looking(ctx: WorkflowContext) -> None:
        await looks(ctx)
        await looks(ctx)

    app = await make_app(looking)
    app.store.clock_offset_us += 3_600_000_000
    app.worker.saw_now(await app.store.now())
    await looking.start()
    first, second = seen
    assert first[0] >= datetime.now(UTC) + timedelta(minutes=59)
    assert first[0] <= second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]


async def test_numbers_are_drawn_again_in_the_order_of_the_code_also_by_tasks(make_app: MakeApp) -> None:
    lives: list[list[Any]] = []

    @workflow
    async def drawing(ctx: WorkflowContext) -> None:
        seen: list[Any] = []
        lives.append(seen)

        async def draws(number: int) -> None:
            for _ in range(3):
                await step(ctx, number)
                seen.append((number, ctx.random().random(), ctx.uuid4()))

        await asyncio.gather(*map(draws, range(4)))
        await wait_event(ctx, "go")
        seen.append((ctx.random().random(), ctx.uuid4()))

    app = await make_app(drawing)
    instance_id = await drawing.start()
    await app.deliver(event("go"))
    await app.handle(instance_id).result()
    live, replayed = lives
    assert live == replayed[:-1]
    assert len({one[-1] for one in replayed}) == len(replayed) == 13
    assert all(one[-1].version == 4 for one in replayed)


async def test_a_new_call_of_the_one_does_not_shift_the_other(make_app: MakeApp) -> None:
    numbers_too = [False]
    lives: list[UUID] = []

    @workflow
    async def drawing(ctx: WorkflowContext) -> None:
        if numbers_too[0]:
            ctx.random().random()
        lives.append(ctx.uuid4())
        await wait_event(ctx, "go")

    app = await make_app(drawing)
    instance_id = await drawing.start()
    numbers_too[0] = True
    await app.deliver(event("go"))
    await app.handle(instance_id).result()
    assert len(lives) == 2
    assert len(set(lives)) == 1


async def test_instances_draw_apart_also_one_after_the_other_under_one_id(database: Database) -> None:
    seen: list[list[Any]] = []

    @workflow
    async def drawing(ctx: WorkflowContext) -> None:
        seen.append([ctx.random().random(), ctx.uuid4()])

    async with EddaApp("engine", database.url, workflows=[drawing]) as app:
        for id_ in ("one", "two"):
            await drawing.options(id=id_).start()
        async with app.storage.engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM edda_instances"))
        await drawing.options(id="one").start()
    assert len({one[0] for one in seen}) == len({one[1] for one in seen}) == 3


async def test_none_of_them_costs_a_row_or_a_flush(make_app: MakeApp) -> None:
    @workflow
    async def drawing(ctx: WorkflowContext) -> None:
        for _ in range(5):
            draw(ctx)
        await step(ctx)
        draw(ctx)

    @workflow
    async def plain(ctx: WorkflowContext) -> None:
        await step(ctx)

    app = await make_app(drawing, plain)
    flushes = []
    for one in (drawing, plain):
        before = app.worker.journal.flushes
        instance_id = await one.start()
        assert len(await app.store.get_history(instance_id)) == 1
        flushes.append(app.worker.journal.flushes - before)
    assert flushes[0] == flushes[1]


def test_a_clock_does_not_go_back_when_another_process_estimates_the_time_lower() -> None:
    clock = Clock()
    clock.begin(1_000)
    assert clock.stamp(0, 900, 0) == 1_000
    assert clock.stamp(1, 1_100, 1_200) == 1_200
    assert clock.now_us == 1_000
    clock.delivered(0)
    clock.skipped(1)
    assert clock.stamp(2, 1_100, 0) == 1_200
    clock.delivered(2)
    assert clock.now_us == 1_200


# ---------------------------------------------------------------------------------------------- any program


LEAVES = ("step", "book", "fails", "sleep", "event", "timeout", "publish")
plans = st.lists(
    st.recursive(
        st.sampled_from(LEAVES),
        lambda inner: st.tuples(
            st.sampled_from(("gather", "block", "first")), st.lists(inner, min_size=1, max_size=3)
        ),
        max_leaves=5,
    ),
    min_size=1,
    max_size=4,
)


class Play:
    """A plan as a workflow. What it draws goes into its calls, whose arguments replay compares."""

    def __init__(self, plan: list[Any]) -> None:
        self.plan = plan
        self.bodies: dict[str, set[str]] = defaultdict(set)
        play = self

        @activity
        async def notes(ctx: WorkflowContext, where: str, seen: list[Any]) -> None:
            play.bodies[where].add(repr(seen))

        self.note = notes
        self.workflow = workflow(name="play")(self._main)

    async def _main(self, ctx: WorkflowContext) -> Any:
        kept: list[Any] = []
        for number, one in enumerate(self.plan):
            await self._do(ctx, one, f"{number}")
            kept.append(draw(ctx))
            await self.note(ctx, f"{number}!", kept)
        return kept

    async def _do(
        self, ctx: WorkflowContext, what: Any, where: str, *, blocks: bool = True, waits: bool = True
    ) -> None:
        if isinstance(what, tuple):
            how, parts = what
            await self._together(ctx, how, parts, where, blocks=blocks, waits=waits)
        elif what == "step" or (what in {"sleep", "event", "timeout"} and not waits):
            await step(ctx, *draw(ctx))
        elif what == "book":
            await book(ctx, *draw(ctx))
        elif what == "publish":
            await send_event_transactional(ctx, "told", "/tests", draw(ctx))
        elif what == "sleep":
            await sleep(ctx, 0.001)
        elif what == "event":
            await wait_event(ctx, "go", match={"data.number": 1}, event_id=f"go at {ctx.now()}")
        elif what == "timeout":
            try:
                await wait_event(ctx, "never", timeout_seconds=0.001)
            except EventTimeoutError:
                await step(ctx, *draw(ctx))
        else:
            try:
                await fails(ctx, *draw(ctx))
            except RetryExhaustedError:
                await step(ctx, *draw(ctx))

    async def _together(
        self, ctx: WorkflowContext, how: str, parts: list[Any], where: str, *, blocks: bool, waits: bool
    ) -> None:
        if how == "block" and blocks:
            async with ctx.transaction():
                for number, part in enumerate(parts):
                    await self._do(ctx, part, f"{where}.{number}", blocks=False, waits=False)
            return
        # Two blocks at once are refused, and so a task opens none.
        doing = [
            asyncio.create_task(self._do(ctx, part, f"{where}.{number}", blocks=False, waits=waits))
            for number, part in enumerate(parts)
        ]
        if how == "first":
            await asyncio.wait(doing, return_when=asyncio.FIRST_COMPLETED)
            await step(ctx, *draw(ctx))
        await asyncio.gather(*doing)


PLANS: list[list[Any]] = [
    ["step", ("gather", ["sleep", "event", "book"])],
    [("block", ["book", "publish", "fails"]), "book"],
    [("first", ["event", "timeout", "step"])],
    [("block", [("gather", ["book", "step", "fails", "book"])])],
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
async def test_a_program_sees_again_what_it_has_seen_after_a_crash_at_any_commit(
    tmp_path: Path, plan: list[Any]
) -> None:
    commits = await _play(tmp_path, plan, None)
    for how in WAYS:
        for number in range(1, commits + 1):
            await _play(tmp_path, plan, Crash(number, how))


@settings(max_examples=40)
@given(plan=plans, crash=st.builds(Crash, st.integers(1, 12), st.sampled_from(WAYS)))
def test_any_program_sees_again_what_it_has_seen_after_a_crash_at_some_commit(
    tmp_path_factory: pytest.TempPathFactory, plan: list[Any], crash: Crash
) -> None:
    asyncio.run(_play(tmp_path_factory.mktemp("plan"), plan, crash))


async def _play(directory: Path, plan: list[Any], crash: Crash | None) -> int:
    """Crash and go on; how many commits there were. What is recorded must be drawn again, else the instance pauses."""
    play = Play(plan)
    with temporary_database("sqlite", directory, is_prepared=True) as database:
        make_app = apps_of(database.url, play.workflow)

        async def prepare(app: EddaApp) -> None:
            await app.deliver([event("go", {"number": 1}) for _ in range(20)])

        result, commits = await run_through(make_app, play.workflow, crash, prepare)
    # A body begins when all that it follows from is durable: whoever runs it, it is given the same.
    assert all(len(given) == 1 for given in play.bodies.values()), play.bodies
    assert len(result) == len(plan)
    return commits


def _time(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


async def _waiting(app: EddaApp, instance_id: str, name: str) -> None:
    async def waits() -> bool:
        loaded = (await app.store.load([instance_id])).get(instance_id)
        return loaded is not None and any(wait.name == name for wait in loaded.waits)

    await eventually(waits)
