"""Two connections and one row: what each interleaving must end in."""

import asyncio
import logging

import pytest

from edda.storage.core.traits import ACCEPT_LOCK
from edda.storage.postgresql.store import PostgreSQLStore
from edda.storage.rows import Applied, State
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP, WORKER
from tests.storage.postgresql.raw import Raw, session
from tests.support.eventually import eventually


async def test_a_zombies_flush_whose_snapshot_is_older_than_the_claim_writes_nothing(
    store: PostgreSQLStore, raw: Raw
) -> None:
    await given.started(store, "neighbour", "order")
    await raw.run("BEGIN; UPDATE edda_instances SET fence = 2, owner = 'worker-2' WHERE id = 'order'")
    # It has its snapshot already, in which the fence is still its own, and waits for the row.
    flushing = asyncio.create_task(
        given.applied(store, given.turn("neighbour", 1), given.turn("order", 1, outbox=[given.message("e")]))
    )
    await eventually(raw.waiting)
    await raw.run("COMMIT")
    assert await flushing == [Applied.APPLIED, Applied.LOST]
    assert await given.recorded(store, "order") == []
    assert await given.recorded(store, "neighbour") == [1]
    assert await given.outgoing(store) == []


async def test_a_registration_that_waited_for_the_accept_lock_sees_the_event(
    store: PostgreSQLStore, raw: Raw
) -> None:
    await given.started(store, "parks", "goes on")
    await raw.run(f"BEGIN; SELECT pg_advisory_xact_lock({ACCEPT_LOCK})")
    registering = asyncio.create_task(
        given.applied(
            store,
            given.park("parks", given.event_wait(1, "key")),
            given.turn("goes on", waits=[given.event_wait(1, "key")]),
        )
    )
    await eventually(raw.waiting)
    # Accept has matched no wait and commits.
    await raw.connection.execute("INSERT INTO edda_event_keys VALUES ($1, '', 1)", given.digest("key"))
    await raw.run("COMMIT")
    assert await registering == [Applied.KEPT, Applied.KEPT]
    assert [await given.due(store, one) for one in ("parks", "goes on")] == [[1], [1]]


async def test_an_end_that_waited_for_the_accept_lock_sees_the_event_it_would_leave_unread(
    store: PostgreSQLStore, raw: Raw
) -> None:
    await given.started(store, "order")
    await raw.run(f"BEGIN; SELECT pg_advisory_xact_lock({ACCEPT_LOCK})")
    ending = asyncio.create_task(given.flush(store, given.end("order", unread=given.unread("key", 0))))
    await eventually(raw.waiting)
    await raw.connection.execute("INSERT INTO edda_event_keys VALUES ($1, '', 1)", given.digest("key"))
    await raw.run("INSERT INTO edda_events VALUES (1, 'paid', 's', 'e', '{}', NULL, NULL, NULL, 1); COMMIT")
    [result] = await ending
    assert result.applied is Applied.KEPT
    assert result.unread is not None
    assert result.unread.event_id == "e"
    assert await given.state(store, "order") is State.RUNNING


async def test_pure_steps_do_not_wait_for_an_accept(store: PostgreSQLStore, raw: Raw) -> None:
    await given.started(store, "steps", "ends")
    await raw.run(f"BEGIN; SELECT pg_advisory_xact_lock({ACCEPT_LOCK})")
    turns = [given.turn("steps", 1, waits=[given.timer(2, delay_us=1)]), given.end("ends", 1)]
    assert await given.applied(store, *turns) == [Applied.APPLIED, Applied.APPLIED]
    await raw.run("COMMIT")


async def test_a_claim_that_waited_for_the_declaration_of_its_workers_death_claims_nothing(
    store: PostgreSQLStore, raw: Raw
) -> None:
    await store.insert_instances([given.instance("order")])
    await raw.run("BEGIN; UPDATE edda_workers SET dead = true")
    claiming = asyncio.create_task(given.claimed(store))
    await eventually(raw.waiting)
    await raw.run("COMMIT")
    assert await claiming == []
    assert await given.state(store, "order") is State.RUNNABLE


async def test_an_instance_that_was_claimed_between_the_look_and_the_lock_is_left_out(
    store: PostgreSQLStore, another_store: OpenStore
) -> None:
    other = await another_store()
    await other.register_worker("worker-2", APP, given.HOUR)
    names = [f"order-{number:03}" for number in range(200)]
    for begin in range(0, 200, 50):
        await store.insert_instances([given.instance(one) for one in names[begin : begin + 50]])
        claims = await asyncio.gather(
            *(one.claim(APP, ["order"], who, 20) for one, who in ((store, WORKER), (other, "worker-2")) * 3)
        )
        ids = [claimed.id for some in claims for claimed in some]
        assert len(ids) == len(set(ids)) == 50
        assert {claimed.fence for some in claims for claimed in some} == {1}


async def test_a_deadlock_is_run_again_and_nobody_hears_of_it(store: PostgreSQLStore, raw: Raw) -> None:
    await given.started(store, "a", "b")
    await raw.run("BEGIN; SELECT id FROM edda_instances WHERE id = 'b' FOR UPDATE")
    # The flush holds a and waits for b; whoever holds b now asks for a. One of the two is refused.
    flushing = asyncio.create_task(given.applied(store, given.turn("a", 1), given.turn("b", 1)))
    await eventually(raw.waiting)
    try:
        await raw.run("UPDATE edda_instances SET recoveries = 7 WHERE id = 'a'; COMMIT")
    except Exception:
        await raw.run("ROLLBACK")
    assert await flushing == [Applied.APPLIED, Applied.APPLIED]
    assert [await given.recorded(store, one) for one in "ab"] == [[1], [1]]


async def test_a_row_that_somebody_holds_for_long_is_asked_for_again(
    store: PostgreSQLStore, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "edda.storage")
    await store.open(lease_us=2_000_000)
    assert await session(store, "lock_timeout") == "500ms"
    await given.started(store, "order")
    await raw.run("BEGIN; SELECT id FROM edda_instances WHERE id = 'order' FOR UPDATE")
    flushing = asyncio.create_task(given.applied(store, given.turn("order", 1)))
    await eventually(lambda: "transaction_again" in caplog.text)
    await raw.run("COMMIT")
    assert await flushing == [Applied.APPLIED]


async def test_starts_that_take_each_others_live_keys_end_with_one_winner_each(
    store: PostgreSQLStore, another_store: OpenStore
) -> None:
    other = await another_store()
    x, y = given.digest("x"), given.digest("y")
    for number in range(10):
        one, two = await asyncio.gather(
            given.applied(
                store, given.start(f"a{number}", live_key=x), given.start(f"b{number}", live_key=y)
            ),
            given.applied(
                other, given.start(f"c{number}", live_key=y), given.start(f"d{number}", live_key=x)
            ),
        )
        first = [Applied.APPLIED, Applied.EXISTS] if number == 0 else [Applied.EXISTS, Applied.EXISTS]
        assert sorted([one[0], two[1]]) == sorted([one[1], two[0]]) == first


async def test_the_first_event_of_a_batch_starts_the_run_of_its_key_whatever_the_ids(
    store: PostgreSQLStore,
) -> None:
    key = given.digest("key")
    events = [
        given.event(event, "key", starts=(given.instance(one, live_key=key),))
        for event, one in (("first", "z"), ("second", "a"))
    ]
    result = await given.accepted(store, *events)
    assert [one.starts for one in result.results] == [1, 0]
    [claimed] = await store.claim(APP, ["order"], WORKER, 10)
    assert (claimed.id, claimed.start_event) == ("z", result.results[0].seq)
