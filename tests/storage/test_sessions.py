"""Users' own transactions: what is written in them is committed with them, or not at all."""

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from edda.errors import ConfigurationError, InstanceExistsError
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.rows import Applied, NewInstance, State, Turn
from tests.storage import given
from tests.storage.given import APP, WORKER


async def their_table(store: Storage) -> None:
    async with store.engine().begin() as connection:
        await connection.execute(sa.text("CREATE TABLE theirs (id INTEGER PRIMARY KEY)"))


async def their_rows(store: Storage) -> int:
    async with store.engine().begin() as connection:
        return int((await connection.execute(sa.text("SELECT COUNT(*) FROM theirs"))).scalar_one())


async def write(connection: AsyncConnection) -> None:
    await connection.execute(sa.text("INSERT INTO theirs VALUES (1)"))


async def test_a_turn_in_a_session_is_committed_with_it(sql_store: Storage) -> None:
    store = sql_store
    await their_table(store)
    await given.started(store, "order")
    turn = given.turn("order", 1, outbox=[given.message("e")], children=[given.instance("child")])
    async with store.engine().begin() as connection:
        await write(connection)
        result = await store.apply_in_session(connection, turn)
        assert (result.applied, result.signals) == (Applied.APPLIED, 0)
    assert await given.recorded(store, "order") == [1]
    assert await store.record_fence("order", 1) == 1
    assert await given.outgoing(store) == ["e"]
    assert await given.state(store, "child") is State.RUNNABLE
    assert await their_rows(store) == 1
    (record,) = await store.get_history("order")
    assert record.recorded_at > 0


async def test_a_turn_in_a_session_that_rolls_back_leaves_nothing(sql_store: Storage) -> None:
    store = sql_store
    await their_table(store)
    await given.started(store, "order")
    turn = given.turn("order", 1, outbox=[given.message("e")], children=[given.instance("child")])
    async with store.engine().connect() as connection:
        await write(connection)
        await store.apply_in_session(connection, turn)
        await connection.rollback()
    assert await given.recorded(store, "order") == []
    assert await given.outgoing(store) == []
    assert await store.get_instance("child") is None
    assert await their_rows(store) == 0


@pytest.mark.parametrize(
    "turn",
    [
        given.turn("order", 1, fence=2),
        given.turn("order", 1, owner="another"),
        given.turn("nobody", 1),
        given.turn("order", 7),
        given.turn("order", 1, 7),
    ],
    ids=["another fence", "another owner", "unknown", "a record that exists", "a later record that exists"],
)
async def test_a_turn_that_is_not_ours_is_lost_in_a_session_too(sql_store: Storage, turn: Turn) -> None:
    await given.started(sql_store, "order")
    await given.flush(sql_store, given.turn("order", 7))
    async with sql_store.engine().connect() as connection:
        result = await sql_store.apply_in_session(connection, turn)
        await connection.rollback()
    assert result.applied is Applied.LOST
    assert await given.recorded(sql_store, "order") == [7]


async def test_a_turn_in_a_session_hears_of_news_and_clears_the_recoveries(sql_store: Storage) -> None:
    store = sql_store
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(9, "a")]))
    await given.accepted(store, given.event("e", "a"))
    async with store.engine().begin() as connection:
        result = await store.apply_in_session(connection, given.turn("order", 1, reset_recoveries=True))
    assert (result.applied, result.signals) == (Applied.APPLIED, 1)
    assert (await given.row(store, "order")).owner == WORKER


async def test_outbox_rows_leave_only_if_their_session_commits(sql_store: Storage) -> None:
    store = sql_store
    async with store.engine().connect() as connection:
        await store.enqueue_in_session(connection, [given.message("lost")])
        await connection.rollback()
    async with store.engine().begin() as connection:
        await store.enqueue_in_session(connection, [given.message("b"), given.message("a", data=None)])
        await store.enqueue_in_session(connection, [])
    assert await given.outgoing(store) == ["b", "a"]


async def test_instances_start_only_if_their_session_commits(sql_store: Storage) -> None:
    store = sql_store
    async with store.engine().connect() as connection:
        await store.insert_instances_in_session(connection, [given.instance("lost")])
        await connection.rollback()
    async with store.engine().begin() as connection:
        await store.insert_instances_in_session(connection, [given.instance("b"), given.instance("a")])
        await store.insert_instances_in_session(connection, [])
    assert sorted(await given.claimed(store)) == ["a", "b"]


@pytest.mark.parametrize(
    "taken",
    [given.instance("order"), given.instance("second", live_key=given.digest("key"))],
    ids=["id", "live key"],
)
async def test_a_taken_start_fails_and_their_transaction_goes_on(
    sql_store: Storage, taken: NewInstance
) -> None:
    store = sql_store
    await their_table(store)
    await given.started(store, "order", live_key=given.digest("key"))
    async with store.engine().begin() as connection:
        await write(connection)
        with pytest.raises(InstanceExistsError, match="exists already"):
            await store.insert_instances_in_session(connection, [given.instance("first"), taken])
    assert await their_rows(store) == 1
    assert await store.get_instance("first") is None
    assert (await store.counts())["instances"] == 1


@pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)
async def test_a_session_sees_what_others_commit_meanwhile(sql_store: Storage) -> None:
    store = sql_store
    count = sa.text("SELECT COUNT(*) FROM edda_instances")
    async with store.engine().begin() as connection:
        assert (await connection.execute(count)).scalar_one() == 0
        await given.started(store, "order")
        assert (await connection.execute(count)).scalar_one() == 1


async def test_memory_has_no_sessions_and_says_what_has() -> None:
    store = open_store("memory:")
    with pytest.raises(ConfigurationError, match="sqlite://"):
        store.engine()
    assert await given.claimed(store, app=APP) == []
