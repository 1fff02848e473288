"""``ctx.session``: the user's transaction is the activity's turn, and its effect is once, whatever the commit."""

import asyncio

import pytest
import sqlalchemy as sa

from edda.activity import activity
from edda.context import WorkflowContext
from edda.retry import RetryPolicy
from edda.storage.contract import Storage
from edda.storage.rows import Applied
from edda.storage.schema import history, instances, outbox, workers
from edda.transactional import send_event_transactional
from edda.workflow import workflow
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.conftest import MakeApp
from tests.interleavings.raw import Raw
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(autouse=True)
async def _users_table(raw: Raw) -> None:
    await raw.execute("CREATE TABLE users_own (name VARCHAR(20) PRIMARY KEY, balance INTEGER NOT NULL)")


async def book(ctx: WorkflowContext, name: str) -> None:
    await ctx.session.execute(
        sa.text("INSERT INTO users_own (name, balance) VALUES (:name, 1)"), {"name": name}
    )
    await send_event_transactional(ctx, "booked", "shop", {"name": name})


async def written(raw: Raw) -> list[str]:
    return [str(row.name) for row in await raw.rows("SELECT name FROM users_own ORDER BY name")]


# ---------------------------------------------------------------------------------------------- unknown commits


@SERVERS
async def test_a_commit_whose_answer_was_lost_is_not_made_again(
    make_app: MakeApp, raw: Raw, proxy: Proxy
) -> None:
    runs: list[str] = []

    @activity(retry_policy=ONCE)
    async def booking(ctx: WorkflowContext) -> str:
        runs.append("booking")
        await book(ctx, f"run {len(runs)}")
        return "booked"

    @activity
    async def shipping(ctx: WorkflowContext, after: str) -> str:
        runs.append("shipping")
        return f"shipped after {after}"

    @workflow
    async def order(ctx: WorkflowContext) -> str:
        return await shipping(ctx, await booking(ctx))

    app = await make_app(order, url=proxy.url)

    async def committed() -> bool:
        return bool(await written(raw))

    proxy.cut_once(committed, asker=b"INSERT INTO users_own")
    handle = await app.submit(order)
    assert await handle.result(timeout=30) == "shipped after booked"
    assert proxy.cuts == 1
    assert runs == ["booking", "shipping"]
    assert await written(raw) == ["run 1"]
    assert await raw.count(outbox) == 1


@SERVERS
async def test_a_commit_that_never_reached_the_database_is_made_by_running_the_body_again_uncounted(
    make_app: MakeApp, raw: Raw, proxy: Proxy
) -> None:
    runs = 0

    @activity(retry_policy=ONCE)
    async def booking(ctx: WorkflowContext) -> int:
        nonlocal runs
        runs += 1
        await book(ctx, f"run {runs}")
        if runs == 1:
            proxy.cut_request(containing=b"edda_history")
        return runs

    @workflow
    async def order(ctx: WorkflowContext) -> int:
        return await booking(ctx)

    app = await make_app(order, url=proxy.url)
    handle = await app.submit(order)
    assert await handle.result(timeout=30) == 2
    assert proxy.cuts == 1
    assert await written(raw) == ["run 2"]
    assert await raw.count(outbox) == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_commit_that_is_still_under_way_when_its_connection_is_lost_is_waited_for(
    make_app: MakeApp, raw: Raw, proxy: Proxy, barrier: Barrier
) -> None:
    """The server has got the COMMIT and is busy with it: whoever asks now and hears "no record" has asked too early."""
    runs = 0

    @activity(retry_policy=ONCE)
    async def booking(ctx: WorkflowContext) -> int:
        nonlocal runs
        runs += 1
        await book(ctx, f"run {runs}")
        return runs

    @workflow
    async def order(ctx: WorkflowContext) -> int:
        return await booking(ctx)

    app = await make_app(order, url=proxy.url)
    async with barrier.at(history, "INSERT", at_commit=True):
        handle = await app.submit(order)
        await eventually(raw.lock_waits)
        proxy.cut_all()

        async def asks_again() -> bool:
            # It waits for the commit as well, or it has run the body again, which waits for the instance's row.
            return await raw.lock_waits() == 2

        await eventually(asks_again)

    async def outcome() -> object:
        return await raw.scalar(sa.select(instances.c.output).where(instances.c.id == handle.id))

    assert await eventually(outcome) == b"1"
    assert runs == 1
    assert await written(raw) == ["run 1"]


# ---------------------------------------------------------------------------------------------- the fence


async def test_a_zombies_session_is_rolled_back_with_everything_in_it(
    make_app: MakeApp, other: Storage, raw: Raw
) -> None:
    """Its instance was re-queued, claimed and finished elsewhere while its body was thinking."""
    runs: list[str] = []
    inside, release = asyncio.Event(), asyncio.Event()

    @activity(retry_policy=ONCE)
    async def booking(ctx: WorkflowContext) -> str:
        name = f"run {len(runs) + 1}"
        runs.append(name)
        if name == "run 1":
            inside.set()
            await release.wait()
        await book(ctx, name)
        return name

    @workflow
    async def order(ctx: WorkflowContext) -> str:
        return await booking(ctx)

    zombie = await make_app(order)
    handle = await zombie.submit(order)
    await inside.wait()

    async def taken_back() -> bool:
        await raw.execute(sa.update(workers).values(expires_at=0))  # unless its heart beats in between
        return (await other.requeue_expired())[1] == 1

    await eventually(taken_back)

    successor = await make_app(order)
    assert await successor.handle(handle.id).result(timeout=30) == "run 2"
    release.set()

    async def dropped() -> bool:
        return not zombie.worker.runs

    await eventually(dropped)
    assert runs == ["run 1", "run 2"]
    assert await written(raw) == ["run 2"]
    assert await raw.count(outbox) == 1


async def test_a_requeue_that_commits_while_the_sessions_turn_waits_for_the_row_fences_it(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    other.clock_offset_us = 2 * given.LEASE_US

    async def turn_in_a_session() -> Applied:
        async with store.engine().connect() as connection:
            await connection.execute(sa.text("INSERT INTO users_own VALUES ('zombie', 1)"))
            result = await store.apply_in_session(connection, given.step("order", 2))
            if result.applied is Applied.APPLIED:
                await connection.commit()
            return result.applied

    async with barrier.at(instances, "UPDATE", "NEW.owner IS NULL"):
        requeuing = await barrier.stopped(other.requeue_expired())
        committing = await barrier.waiting(turn_in_a_session())
    assert (await requeuing)[1] == 1
    assert await committing is Applied.LOST
    assert await written(raw) == []
    assert await raw.count(history) == 1


async def test_a_requeue_waits_for_a_sessions_turn_and_the_next_owner_loads_it(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    other.clock_offset_us = 2 * given.LEASE_US

    async def turn_in_a_session() -> None:
        async with store.engine().begin() as connection:
            await connection.execute(sa.text("INSERT INTO users_own VALUES ('owner', 1)"))
            result = await store.apply_in_session(connection, given.step("order", 2))
            assert result.applied is Applied.APPLIED

    async with barrier.at(history, "INSERT", "NEW.seq = 2"):
        committing = await barrier.stopped(turn_in_a_session())
        requeuing = await barrier.waiting(other.requeue_expired())
    await committing
    assert (await requeuing)[1] == 1
    assert await written(raw) == ["owner"]
    assert [record.seq for record in (await other.load(["order"]))["order"].history] == [1, 2]


async def test_a_sessions_turn_that_finds_its_record_written_does_not_commit_a_second_time(
    store: Storage, raw: Raw
) -> None:
    """The body was run again though the first commit had succeeded: the second effect must not stay."""
    await store.flush([given.start("order")])
    for attempt, expected in enumerate((Applied.APPLIED, Applied.LOST)):
        async with store.engine().connect() as connection:
            await connection.execute(sa.text(f"INSERT INTO users_own VALUES ('try {attempt}', 1)"))
            result = await store.apply_in_session(connection, given.step("order", 2))
            assert result.applied is expected
            if result.applied is Applied.APPLIED:
                await connection.commit()
    assert await written(raw) == ["try 0"]
    assert await store.record_fence("order", 2) == 1


@SERVERS
async def test_a_session_that_has_read_before_judges_by_what_was_committed_since(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """In REPEATABLE READ, MySQL's default, it would not see that its record is there already."""
    await store.flush([given.start("order")])
    async with store.engine().connect() as connection:
        await connection.execute(sa.text("SELECT name FROM users_own"))
        await connection.execute(sa.select(history.c.seq))
        assert (await other.flush([given.step("order", 2)])).results[0].applied is Applied.APPLIED
        result = await store.apply_in_session(connection, given.step("order", 2))
        assert result.applied is Applied.LOST


# ---------------------------------------------------------------------------------------------- other users' locks


@SERVERS
async def test_a_deadlock_in_the_users_own_statements_runs_the_body_again_uncounted(
    make_app: MakeApp, raw: Raw
) -> None:
    await raw.execute("INSERT INTO users_own VALUES ('x', 0), ('y', 0)")
    runs = 0
    holds_x, holds_y = asyncio.Event(), asyncio.Event()
    add = "UPDATE users_own SET balance = balance + 1 WHERE name = '{}'"

    @activity(retry_policy=ONCE)
    async def transfer(ctx: WorkflowContext) -> int:
        nonlocal runs
        runs += 1
        await ctx.session.execute(sa.text(add.format("x")))
        holds_x.set()
        await holds_y.wait()
        await ctx.session.execute(sa.text(add.format("y")))
        return runs

    @workflow
    async def order(ctx: WorkflowContext) -> int:
        return await transfer(ctx)

    app = await make_app(order)
    async with raw.transaction() as user:
        await raw.survive(user)
        await user.execute(sa.text(add.format("y")))
        handle = await app.submit(order)
        await holds_x.wait()
        holds_y.set()
        await eventually(raw.lock_waits)
        await user.execute(sa.text(add.format("x")))
    assert await handle.result(timeout=30) == 2
    balances = [row.balance for row in await raw.rows("SELECT balance FROM users_own")]
    assert balances == [2, 2]


@SERVERS
async def test_a_session_that_thinks_long_after_its_statements_stops_no_event_for_its_instance(
    make_app: MakeApp, other: Storage, raw: Raw
) -> None:
    """Nor anybody else: until its last statements it has locked only what is the user's."""
    inside, release = asyncio.Event(), asyncio.Event()

    @activity
    async def booking(ctx: WorkflowContext) -> None:
        await book(ctx, "slow")
        inside.set()
        await release.wait()

    @activity
    async def quick(ctx: WorkflowContext) -> str:
        return "quick"

    @workflow
    async def order(ctx: WorkflowContext) -> str:
        _, said = await asyncio.gather(booking(ctx), quick(ctx))
        return said

    app = await make_app(order)
    handle = await app.submit(order)
    await inside.wait()

    async def quick_is_recorded() -> bool:
        return await raw.count(history) == 1

    await eventually(quick_is_recorded)
    await other.accept(given.batch("b", given.event("e", addressee=handle.id)))
    assert await other.claim(given.APP, ["order"], "b", 1) == []
    assert await written(raw) == []
    release.set()
    assert await handle.result(timeout=30) == "quick"
    assert await written(raw) == ["slow"]
