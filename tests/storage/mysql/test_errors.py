"""What a failure means: nothing was written, or nobody knows; and that the store goes on."""

import asyncio
import socket

import pytest

from edda.errors import SchemaError, StorageDataError, StorageUnavailableError
from edda.storage.mysql.connection import Link
from edda.storage.mysql.store import MySQLStore
from edda.storage.rows import Applied, Record
from tests.storage.mysql import on
from tests.storage.mysql.conftest import OpenStore
from tests.support.databases import Database
from tests.support.eventually import eventually


@pytest.mark.parametrize("bad", ["x" * 129, "\ud800"], ids=["too long", "not UTF-8"])
async def test_a_value_that_cannot_be_stored_leaves_nothing_written(store: MySQLStore, bad: str) -> None:
    with pytest.raises(StorageDataError):
        await store.flush([on.start("good"), on.start(bad)])
    assert await store.get_instance("good") is None
    assert (await store.flush([on.start("good")])).results[0].applied is Applied.APPLIED


async def test_a_key_that_is_too_long_is_refused_not_cut(store: MySQLStore) -> None:
    turn = on.start("order")
    turn.records[0] = Record(1, 1, "k" * 33, "charge", b"")
    with pytest.raises(StorageDataError):
        await store.flush([turn])
    assert await store.get_instance("order") is None


async def test_a_value_larger_than_the_servers_packet_is_refused_and_the_connection_lives(
    store: MySQLStore,
) -> None:
    await store.flush([on.start("order")])
    async with store._hot().link() as link:
        limit = link.max_packet
    large = on.step("order", 2, payload=b"x" * limit)
    with pytest.raises(StorageDataError, match="max_allowed_packet"):
        await store.flush([large])
    assert [record.seq for record in await store.get_history("order")] == [1]


async def test_a_flush_larger_than_the_servers_packet_is_one_transaction_all_the_same(
    store: MySQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Link.open

    async def with_small_packets(*args: object) -> Link:
        link = await connect(*args)  # type: ignore[arg-type]
        link.max_packet = 20_000
        return link

    monkeypatch.setattr(Link, "open", with_small_packets)
    store._hot().clear()
    ids = [f"order-{number}" for number in range(40)]
    before = store.statements
    await store.flush([on.start(one) for one in ids])
    turns = [on.step(one, 2, payload=b"x" * 5_000) for one in ids]
    results = (await store.flush(turns)).results
    assert store.statements - before > 10
    assert {result.applied for result in results} == {Applied.APPLIED}

    too_large = on.step("order-39", 3, payload=b"x" * 25_000)
    with pytest.raises(StorageDataError):
        await store.flush([*(on.step(one, 3, payload=b"x" * 5_000) for one in ids[:-1]), too_large])
    loaded = await store.load(ids)
    assert {len(one.history) for one in loaded.values()} == {2}


async def test_a_connection_killed_in_mid_transaction_is_an_unknown_outcome(
    store: MySQLStore, link: Link
) -> None:
    await store.flush([on.start("order")])
    await link.query("START TRANSACTION; SELECT id FROM edda_instances WHERE id = 'order' FOR UPDATE")
    flushing = asyncio.create_task(store.flush([on.step("order", 2)]))
    victim = await eventually(lambda: on.waiting_connection(link))
    await link.query(f"KILL {victim}")
    with pytest.raises(StorageUnavailableError):
        await flushing
    await link.query("COMMIT")
    assert (await store.flush([on.step("order", 2)])).results[0].applied is Applied.APPLIED


async def test_a_connection_killed_while_idle_is_not_handed_out(store: MySQLStore, link: Link) -> None:
    async with store._hot().link() as victim:
        ((number,),) = await on.rows(victim, "SELECT CONNECTION_ID()")
    await link.query(f"KILL {number}")
    await eventually(lambda: victim.is_lost)
    await store.ping()


async def test_no_server_is_unavailable_and_no_password_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"mysql://root:hunter2@127.0.0.1:{unused.getsockname()[1]}/edda"
        store = on.new_store(url)
        with pytest.raises(StorageUnavailableError) as failure:
            await store.open()
        with pytest.raises(StorageUnavailableError):
            await store.heart().beat(on.WORKER, on.APP, 1)
        await store.close()
    assert "hunter2" not in f"{failure.value} {store!r} {store._address!r} {failure.value.__cause__}"


@pytest.mark.empty_database
async def test_a_database_without_the_schema_says_what_to_do(server: Database) -> None:
    store = on.new_store(server.url)
    await store.open()
    with pytest.raises(SchemaError, match="edda migrate"):
        await store.claim(on.APP, ["order"], on.WORKER, 1)
    await store.close()


async def test_a_record_written_by_another_owner_is_lost_not_overwritten(
    store: MySQLStore, another_store: OpenStore, link: Link
) -> None:
    await store.flush([on.start("order")])
    await on.rows(link, "UPDATE edda_instances SET fence = 7, owner = 'b' WHERE id = 'order'")
    await (await another_store()).flush([on.step("order", 2, fence=7, owner="b", payload=b"theirs")])
    await on.rows(link, "UPDATE edda_instances SET fence = 8, owner = %s WHERE id = 'order'", on.WORKER)
    result = (await store.flush([on.step("order", 2, fence=8, payload=b"ours")])).results[0]
    assert result.applied is Applied.LOST
    assert (await store.get_history("order"))[1].payload == b"theirs"
