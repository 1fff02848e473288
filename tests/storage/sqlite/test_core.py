"""Cold transactions that every database shares (``edda.storage.core``), where they repeat, race or run late."""

import pytest

from edda.errors import InstanceExistsError
from edda.storage.contract import Storage
from edda.storage.rows import RelayOutcome
from tests.storage import given
from tests.storage.given import APP, HOUR, OTHER, SECOND, WORKER

RELAY = "relay"


async def put(store: Storage, *messages: str) -> None:
    """``key:id``, or an id without a key."""
    name = f"writer-{store.statements}"
    await given.started(store, name)
    outbox = [
        given.message(one.rpartition(":")[2], ordering_key=one.rpartition(":")[0] or None) for one in messages
    ]
    await given.flush(store, given.turn(name, 1, outbox=outbox))


async def taken(store: Storage, limit: int = 100) -> dict[str, int]:
    rows = (await store.outbox_take("default", RELAY, HOUR, limit, 1 << 20)).rows
    return {row.event_id: row.id for row in rows}


async def settle(store: Storage, outcome: RelayOutcome) -> None:
    assert await store.outbox_settle("default", RELAY, outcome)


# ---------------------------------------------------------------------------------------------- workers


async def test_a_worker_registered_again_after_an_unknown_commit_has_a_new_lease(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    store.clock_offset_us += HOUR // 2
    await store.register_worker(OTHER, APP, HOUR)
    await store.requeue_expired()
    beat = await store.poll(APP)
    assert beat.foreign_expiry_us == pytest.approx(await store.now() + HOUR // 2, abs=60 * SECOND)
    await store.insert_instances([given.instance("order")])
    assert await given.claimed(store, OTHER) == ["order"]


async def test_a_worker_that_was_declared_dead_does_not_come_back_by_registering_late(store: Storage) -> None:
    await store.register_worker(OTHER, APP, -1)
    await store.requeue_expired()
    await store.register_worker(OTHER, APP, HOUR)
    await store.insert_instances([given.instance("order")])
    assert await given.claimed(store, OTHER) == []


async def test_a_worker_that_retires_twice_gives_back_once(store: Storage) -> None:
    await given.started(store, "order")
    assert [await store.retire_worker(WORKER) for _ in range(2)] == [1, 0]
    assert (await given.row(store, "order")).fence == 2


# ---------------------------------------------------------------------------------------------- instances


async def test_of_equal_ids_in_one_call_the_first_is_inserted(store: Storage) -> None:
    new = [given.instance("a", workflow="first"), given.instance("a", workflow="second"), given.instance("b")]
    assert await store.insert_instances(new) == [True, False, True]
    assert (await given.row(store, "a")).workflow == "first"
    assert await store.insert_instances(new) == [False, False, False]


async def test_a_live_key_that_a_taken_id_names_is_free_for_the_next_in_the_list(store: Storage) -> None:
    await given.started(store, "a")
    key = given.digest("key")
    new = [given.instance("a", live_key=key), given.instance("b", live_key=key)]
    assert await store.insert_instances(new) == [False, True]


async def test_a_start_refused_in_a_session_takes_back_the_others_of_its_call(store: Storage) -> None:
    await given.started(store, "taken")
    async with store.engine().begin() as connection:
        await store.enqueue_in_session(connection, [given.message("theirs")])
        with pytest.raises(InstanceExistsError):
            await store.insert_instances_in_session(
                connection, [given.instance("new"), given.instance("taken")]
            )
        await store.insert_instances_in_session(connection, [])
    assert await store.get_instance("new") is None
    assert await given.outgoing(store) == ["theirs"]


# ---------------------------------------------------------------------------------------------- the relay


async def test_a_retry_behind_a_dead_row_of_its_key_does_not_overtake_it(store: Storage) -> None:
    await put(store, "k:1", "k:2", "k:3", "free")
    rows = await taken(store)
    await settle(
        store, RelayOutcome(dead=((rows["1"], "gone"),), failed=((rows["2"], 0, "why"),), parked=(rows["3"],))
    )
    assert list(await taken(store)) == ["free"]
    await put(store, "k:4")
    assert list(await taken(store)) == ["free"]


async def test_retries_that_stand_behind_others_leave_room_for_what_can_go(store: Storage) -> None:
    await put(store, "k:1", *(f"k:{number}" for number in range(2, 8)), "free")
    rows = await taken(store)
    failed = tuple((rows[str(number)], 0, "why") for number in range(2, 8))
    await settle(store, RelayOutcome(dead=((rows["1"], "gone"),), failed=failed))
    await taken(store, limit=3)
    await taken(store, limit=3)
    assert "free" in await taken(store, limit=3)


async def test_a_row_that_was_written_late_waits_for_those_parked_in_front_of_it(store: Storage) -> None:
    await put(store, "k:1", "k:2", "l:1x")
    rows = await taken(store)
    await settle(
        store,
        RelayOutcome(confirmed=(rows["1x"],), failed=((rows["1"], HOUR // 2, "why"),), parked=(rows["2"],)),
    )
    store.clock_offset_us += HOUR // 2
    # By a transaction that began before the row failed: nobody has parked it.
    await put(store, "k:3")
    assert list(await taken(store)) == ["1"]
    await put(store, "k:4")
    await settle(store, RelayOutcome(confirmed=(rows["1"],)))
    assert list(await taken(store)) == ["2", "3", "4"]


async def test_what_stands_between_a_confirmed_and_a_dead_row_of_its_key_goes(store: Storage) -> None:
    await put(store, "k:1", "k:2", "k:3", "k:4")
    rows = await taken(store)
    await settle(
        store,
        RelayOutcome(
            failed=((rows["1"], 0, "why"),), parked=(rows["2"], rows["4"]), dead=((rows["3"], "gone"),)
        ),
    )
    again = await taken(store)
    assert list(again) == ["1"]
    await settle(store, RelayOutcome(confirmed=(rows["1"],)))
    assert list(await taken(store)) == ["2"]
    await settle(store, RelayOutcome(confirmed=(rows["2"],)))
    assert await taken(store) == {}
