"""Two connections and one row: what each interleaving must end in."""

import asyncio
import logging

import pytest

from edda.storage.mysql import store as store_module
from edda.storage.mysql.connection import Link, session_settings
from edda.storage.mysql.statements import COMMIT, Statement
from edda.storage.mysql.store import MySQLStore
from edda.storage.rows import Applied, NewInstance, State, Verdict
from tests.storage.mysql import on
from tests.storage.mysql.conftest import OpenStore
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import spawn


async def test_a_flush_that_waited_for_a_claim_compares_the_fence_that_the_claim_left(
    store: MySQLStore, link: Link
) -> None:
    await store.flush([on.start("order"), on.start("neighbour")])
    await link.query(
        "START TRANSACTION; UPDATE edda_instances SET fence = 2, owner = 'worker-2' WHERE id = 'order'"
    )
    flushing = asyncio.create_task(store.flush([on.step("order", 2), on.step("neighbour", 2)]))
    await eventually(lambda: on.waiting_connection(link))
    await link.query("COMMIT")
    results = (await flushing).results
    assert [result.applied for result in results] == [Applied.LOST, Applied.APPLIED]
    assert [record.seq for record in await store.get_history("order")] == [1]


async def test_an_event_accepted_while_its_wait_is_being_registered_is_not_lost(
    store: MySQLStore, link: Link
) -> None:
    await store.flush([on.start("order")])
    await link.query("START TRANSACTION; SELECT id FROM edda_accept WHERE id = 1 FOR UPDATE")
    parking = asyncio.create_task(store.flush([on.park("order", 2, "key")]))
    await eventually(lambda: on.waiting_connection(link))
    # Accept matched no wait and commits; the registration waited for it and must find the event.
    await on.rows(link, "INSERT INTO edda_event_keys VALUES (%s, '', 1)", on.digest("key"))
    await link.query("COMMIT")
    assert (await parking).results[0].applied is Applied.KEPT
    assert (await store.load(["order"]))["order"].waits[0].due


async def test_a_wait_registered_before_the_accept_lock_is_had_is_matched(
    store: MySQLStore, link: Link
) -> None:
    await store.flush([on.start("order")])
    await link.query("START TRANSACTION; SELECT id FROM edda_accept WHERE id = 1 LOCK IN SHARE MODE")
    accepting = asyncio.create_task(store.accept(on.batch("b", on.event("e", "key"))))
    await eventually(lambda: on.waiting_connection(link))
    await on.rows(
        link,
        "INSERT INTO edda_waits (instance_id, seq, kind, name, hash, chain, `cursor`, skip, due) "
        "VALUES ('order', 2, 'event', 'paid', %s, 'order', 0, 0, 0)",
        on.digest("key"),
    )
    await link.query("COMMIT")
    assert (await accepting).results[0].waits == 1


async def test_events_and_waits_that_race_always_meet(store: MySQLStore, another_store: OpenStore) -> None:
    gateway = await another_store()
    for number in range(30):
        await store.flush([on.start(f"order-{number}")])
        parked, _ = await asyncio.gather(
            store.flush([on.park(f"order-{number}", 2, f"key-{number}")]),
            gateway.accept(on.batch(f"b{number}", on.event(f"e{number}", f"key-{number}"))),
        )
        row = await store.get_instance(f"order-{number}")
        assert row is not None
        kept = parked.results[0].applied is Applied.KEPT
        assert row.state == (State.RUNNING if kept else State.RUNNABLE)
        assert (await store.load([row.id]))[row.id].waits[0].event is not None


async def test_accepts_of_the_same_events_in_opposite_order_accept_each_once(
    store: MySQLStore, another_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "edda.storage")
    other = await another_store()
    for number in range(20):
        events = [on.event(f"{number}-{name}", "key") for name in "abcdefgh"]
        one, two = await asyncio.gather(
            store.accept(on.batch(f"one-{number}", *events)),
            other.accept(on.batch(f"two-{number}", *reversed(events))),
        )
        verdicts = [one.results[0].verdict, two.results[0].verdict]
        assert sorted(verdicts) == [Verdict.DUPLICATE, Verdict.UNMATCHED]
        assert {result.seq for result in one.results} == {result.seq for result in two.results}
    counts = await store.counts()
    assert counts["events"] == counts["identities"] == 160
    assert "transaction_again" not in caplog.text


async def test_flushes_that_name_the_same_instances_in_opposite_order_do_not_deadlock(
    store: MySQLStore, another_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "edda.storage")
    zombie = await another_store()
    ids = [f"order-{number}" for number in range(20)]
    await store.flush([on.start(one) for one in ids])
    for seq in range(2, 22):
        mine, theirs = await asyncio.gather(
            store.flush([on.step(one, seq) for one in ids]),
            zombie.flush([on.step(one, seq, owner="zombie") for one in reversed(ids)]),
        )
        assert {result.applied for result in mine.results} == {Applied.APPLIED}
        assert {result.applied for result in theirs.results} == {Applied.LOST}
    assert "transaction_again" not in caplog.text


async def test_starts_that_take_each_others_live_keys_end_with_one_winner_each(
    store: MySQLStore, another_store: OpenStore
) -> None:
    other = await another_store()
    for number in range(20):
        one, two = await asyncio.gather(
            store.flush([on.start(f"a{number}", live_key="x"), on.start(f"b{number}", live_key="y")]),
            other.flush([on.start(f"c{number}", live_key="y"), on.start(f"d{number}", live_key="x")]),
        )
        applied = [result.applied for result in (*one.results, *two.results)]
        expected = [Applied.APPLIED, Applied.EXISTS] if number == 0 else [Applied.EXISTS, Applied.EXISTS]
        assert sorted([applied[0], applied[3]]) == expected
        assert sorted([applied[1], applied[2]]) == expected


async def test_two_claimers_share_what_there_is(store: MySQLStore, another_store: OpenStore) -> None:
    other = await another_store()
    await other.register_worker("worker-2", on.APP, 60_000_000)
    await store.insert_instances([NewInstance(f"i{n:03}", on.APP, "order", b"{}") for n in range(60)])
    seen: list[str] = []
    while True:
        rounds = await asyncio.gather(
            store.claim(on.APP, ["order"], on.WORKER, 7), other.claim(on.APP, ["order"], "worker-2", 7)
        )
        if not any(rounds):
            break
        assert all(len(claimed) <= 7 for claimed in rounds)
        seen += [one.id for claimed in rounds for one in claimed]
    assert len(seen) == len(set(seen)) == 60


async def test_a_claim_does_not_wait_for_a_row_that_somebody_holds(store: MySQLStore, link: Link) -> None:
    await store.insert_instances([NewInstance(name, on.APP, "order", b"{}") for name in ("a", "b")])
    await link.query("START TRANSACTION; SELECT id FROM edda_instances WHERE id = 'a' FOR UPDATE")
    assert [one.id for one in await store.claim(on.APP, ["order"], on.WORKER, 10)] == ["b"]


async def test_a_worker_declared_dead_while_it_claims_owns_nothing_for_ever(
    store: MySQLStore, link: Link
) -> None:
    await store.insert_instances([NewInstance("order", on.APP, "order", b"{}")])
    await on.rows(link, "UPDATE edda_workers SET expires_at = 0")
    await link.query("START TRANSACTION; UPDATE edda_workers SET dead = 1")
    claiming = asyncio.create_task(store.claim(on.APP, ["order"], on.WORKER, 10))
    await eventually(lambda: on.waiting_connection(link))
    await link.query("COMMIT")
    assert await claiming == []
    row = await store.get_instance("order")
    assert row is not None
    assert row.state is State.RUNNABLE


async def test_after_a_lock_wait_timeout_nothing_of_the_first_try_is_left(
    store: MySQLStore, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 1)
    store._hot().clear()
    await store.flush([on.start("order")])
    await link.query("START TRANSACTION; SELECT id FROM edda_instances WHERE id = 'order' FOR UPDATE")
    tries = []

    async def write_then_wait(mine: Link) -> None:
        tries.append(mine)
        await mine.run(
            Statement("START TRANSACTION"),
            Statement("INSERT INTO edda_dead_letters VALUES (NULL, '', 1, 'x', '', '', '', 1, 0)"),
        )
        if len(tries) == 2:
            await link.query("COMMIT")
            # 1205 undoes one statement and not the transaction: without a ROLLBACK this would be two.
            assert len(await on.rows(mine, "SELECT id FROM edda_dead_letters")) == 1
        await mine.run(Statement("SELECT id FROM edda_instances WHERE id = 'order' FOR UPDATE"), COMMIT)

    await store._transact(write_then_wait)
    assert len(tries) == 2
    assert (await store.counts())["dead_letters"] == 1


async def test_a_deadlock_is_run_again_and_nobody_hears_of_it(store: MySQLStore, link: Link) -> None:
    await store.flush([on.start("a"), on.start("b")])
    await link.query("START TRANSACTION; SELECT id FROM edda_instances WHERE id = 'b' FOR UPDATE")
    # The flush holds a and waits for b; whoever holds b now asks for a. One of the two is refused.
    flushing = asyncio.create_task(store.flush([on.step("a", 2), on.step("b", 2)]))
    await eventually(lambda: on.waiting_connection(link))
    try:
        await link.query("UPDATE edda_instances SET recoveries = 7 WHERE id = 'a'; COMMIT")
    except Exception:
        await link.query("ROLLBACK")
    assert {result.applied for result in (await flushing).results} == {Applied.APPLIED}
    assert [len(await store.get_history(one)) for one in "ab"] == [2, 2]


async def test_a_holder_that_thinks_too_long_is_disconnected(store: MySQLStore) -> None:
    await store.flush([on.start("order")])
    holder = await Link.open(store._address, session_settings(1, 5), lambda _: None)
    await holder.query("START TRANSACTION; SELECT id FROM edda_instances WHERE id = 'order' FOR UPDATE")
    assert (await store.flush([on.step("order", 2)])).results[0].applied is Applied.APPLIED
    await eventually(lambda: holder.is_lost)
    holder.close()


async def test_a_stopped_process_that_holds_the_accept_lock_stops_nobody_for_long(
    store: MySQLStore, server: Database
) -> None:
    with spawn("tests.storage.mysql.test_locks:hold_the_accept_lock", server.url) as process:
        await process.line("^locked$")
        process.pause()
        result = await store.accept(on.batch("b", on.event("e")))
        assert result.results[0].verdict is Verdict.UNMATCHED
        assert process.returncode is None


async def hold_the_accept_lock(url: str) -> None:
    store_module.MIN_WAIT_TIMEOUT = 1  # type: ignore[attr-defined]
    store = on.new_store(url)
    await store.open(lease_us=2_000_000)
    async with store._hot().link() as link:
        await link.query("START TRANSACTION; SELECT id FROM edda_accept WHERE id = 1 FOR UPDATE")
        print("locked")
        await asyncio.Event().wait()


async def test_a_users_session_may_think_but_not_once_our_rows_are_locked(store: MySQLStore) -> None:
    await store.flush([on.start("order")])
    limit = "SELECT @@wait_timeout"
    async with store.engine().begin() as connection:
        before = (await connection.exec_driver_sql(limit)).scalar_one()
        await store.apply_in_session(connection, on.step("order", 2))
        during = (await connection.exec_driver_sql(limit)).scalar_one()
    async with store.engine().begin() as connection:
        after = (await connection.exec_driver_sql(limit)).scalar_one()
    assert during == store.lease_us // 2_000_000 < before == after
