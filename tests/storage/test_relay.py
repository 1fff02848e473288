"""The outbox: one relay at a time takes rows, in the order of their keys, and settles them."""

from edda.storage.contract import Storage
from edda.storage.rows import OutboxMessage, RelayOutcome, TakenRows
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import HOUR, SECOND

RELAY = "relay-1"
RIVAL = "relay-2"


async def put(store: Storage, *messages: OutboxMessage | str) -> None:
    """Rows of one turn; a text is ``id`` or ``key:id``."""
    if await store.get_instance("order") is None:
        await given.started(store, "order")
    ready = [_message(one) if isinstance(one, str) else one for one in messages]
    seq = len(await store.get_history("order")) + 1
    await given.flush(store, given.turn("order", seq, outbox=ready))


def _message(text: str) -> OutboxMessage:
    key, _, event_id = text.rpartition(":")
    return given.message(event_id, ordering_key=key or None)


async def take(
    store: Storage, owner: str = RELAY, limit: int = 100, max_bytes: int = 1 << 30, **where: str
) -> TakenRows:
    return await store.outbox_take(where.get("destination", "default"), owner, HOUR, limit, max_bytes)


async def taken(store: Storage, limit: int = 100) -> dict[str, int]:
    """Event id -> row id, of all that a relay gets now."""
    return {row.event_id: row.id for row in (await take(store, limit=limit)).rows}


async def settle(store: Storage, **outcome: object) -> None:
    assert await store.outbox_settle("default", RELAY, RelayOutcome(**outcome))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the lease


async def test_only_one_relay_at_a_time_gets_rows(store: Storage, another_store: OpenStore) -> None:
    await put(store, "e")
    other = await another_store()
    first = await take(store)
    assert (first.held, first.lease_us, [row.event_id for row in first.rows]) == (True, HOUR, ["e"])
    second = await take(other, RIVAL)
    assert (second.held, second.rows) == (False, ())
    assert second.next_available_us is not None
    assert 0 < second.next_available_us <= HOUR


async def test_a_relay_renews_its_own_lease(store: Storage) -> None:
    await put(store, "e")
    await take(store)
    store.clock_offset_us += HOUR - 30 * SECOND
    assert (await take(store)).held
    store.clock_offset_us += HOUR - 30 * SECOND
    assert not (await take(store, RIVAL)).held


async def test_an_expired_or_released_lease_goes_to_whoever_comes(store: Storage) -> None:
    await put(store, "e")
    await take(store)
    store.clock_offset_us += HOUR + SECOND
    assert (await take(store, RIVAL)).held
    await store.outbox_release("default", RELAY)
    assert not (await take(store)).held, "it was not ours to release"
    await store.outbox_release("default", RIVAL)
    assert (await take(store)).held
    await store.outbox_release("elsewhere", RELAY)


async def test_a_relay_that_lost_its_lease_settles_nothing(store: Storage) -> None:
    await put(store, "e")
    rows = await taken(store)
    outcome = RelayOutcome(confirmed=(rows["e"],))
    assert not await store.outbox_settle("default", RIVAL, outcome)
    assert not await store.outbox_settle("elsewhere", RELAY, outcome)
    store.clock_offset_us += HOUR + SECOND
    await take(store, RIVAL)
    assert not await store.outbox_settle("default", RELAY, outcome)
    assert (await store.counts())["outbox"] == 1
    assert await store.outbox_settle("default", RIVAL, outcome)
    assert (await store.counts())["outbox"] == 0


async def test_a_lease_that_ran_out_and_that_nobody_took_still_settles(store: Storage) -> None:
    await put(store, "e")
    rows = await taken(store)
    store.clock_offset_us += HOUR + SECOND
    assert await store.outbox_settle("default", RELAY, RelayOutcome(confirmed=(rows["e"],)))
    assert (await store.counts())["outbox"] == 0


async def test_leases_of_two_destinations_are_apart(store: Storage) -> None:
    await put(store, given.message("a", destination="one"), given.message("b", destination="two"))
    assert [row.event_id for row in (await take(store, destination="one")).rows] == ["a"]
    assert [row.event_id for row in (await take(store, RIVAL, destination="two")).rows] == ["b"]
    assert (await take(store, destination="Two")).rows == ()


# ---------------------------------------------------------------------------------------------- taking


async def test_rows_come_in_the_order_of_their_transactions(store: Storage) -> None:
    await put(store, "a", "k:b")
    await put(store, "c", "k:d")
    assert list(await taken(store)) == ["a", "b", "c", "d"]
    assert list(await taken(store, limit=3)) == ["a", "b", "c"]


async def test_rows_are_cut_by_their_bytes_but_one_always_comes(store: Storage) -> None:
    await put(store, *(given.message(str(number), data=b"x" * 1_000) for number in range(5)))
    assert [row.event_id for row in (await take(store, max_bytes=3_500)).rows] == ["0", "1", "2"]
    assert [row.event_id for row in (await take(store, max_bytes=1)).rows] == ["0"]


async def test_an_empty_outbox_gives_the_lease_and_no_rows(store: Storage) -> None:
    assert await take(store) == TakenRows(True, HOUR, (), None)


async def test_what_was_taken_and_not_settled_comes_again(store: Storage) -> None:
    await put(store, "a", "k:b")
    assert await taken(store) == await taken(store)


# ---------------------------------------------------------------------------------------------- settling


async def test_confirmed_rows_are_gone(store: Storage) -> None:
    await put(store, "a", "k:b", "c")
    rows = await taken(store)
    await settle(store, confirmed=(rows["a"], rows["b"]))
    assert list(await taken(store)) == ["c"]
    assert (await store.counts())["outbox"] == 1


async def test_a_failed_row_comes_again_when_its_time_has_come_and_counts_its_attempts(
    store: Storage,
) -> None:
    await put(store, "a", "b")
    rows = await taken(store)
    await settle(store, failed=((rows["a"], HOUR // 2, "refused"),), confirmed=(rows["b"],))
    later = await take(store)
    assert later.rows == ()
    assert later.next_available_us is not None
    assert HOUR // 2 - 60 * SECOND < later.next_available_us <= HOUR // 2
    store.clock_offset_us += HOUR // 2
    again = await take(store)
    assert [(row.event_id, row.attempts) for row in again.rows] == [("a", 1)]
    await settle(store, failed=((rows["a"], 0, "refused"),))
    again = await take(store)
    assert [(row.event_id, row.attempts) for row in again.rows] == [("a", 2)]
    assert again.next_available_us is None


async def test_a_dead_row_never_comes_again(store: Storage) -> None:
    await put(store, "a", "b")
    rows = await taken(store)
    await settle(store, dead=((rows["a"], "gone"),))
    store.clock_offset_us += 48 * HOUR
    assert list(await taken(store)) == ["b"]
    assert (await store.counts())["outbox.dead"] == 1


async def test_behind_a_failed_row_its_key_waits_and_other_keys_go_on(store: Storage) -> None:
    await put(store, "k:1", "k:2", "l:1x", "free")
    rows = await taken(store)
    await settle(
        store,
        failed=((rows["1"], HOUR // 2, "why"),),
        parked=(rows["2"],),
        confirmed=(rows["1x"], rows["free"]),
    )
    await put(store, "k:3", "l:2x")
    assert list(await taken(store)) == ["2x"]
    store.clock_offset_us += HOUR // 2
    again = await taken(store)
    assert list(again) == ["1", "2x"]
    await settle(store, confirmed=(rows["1"], again["2x"]))
    assert list(await taken(store)) == ["2", "3"]


async def test_rows_of_a_key_never_come_before_the_retry_in_front_of_them(store: Storage) -> None:
    await put(store, "k:1", "k:2", "k:3")
    rows = await taken(store)
    await settle(store, failed=((rows["1"], 0, "why"),), parked=(rows["2"], rows["3"]))
    await put(store, "k:4", "other")
    again = list(await taken(store))
    assert again == ["1", "other"]


async def test_behind_a_dead_row_its_key_waits_for_an_operator(store: Storage) -> None:
    await put(store, "k:1", "k:2", "l:1x")
    rows = await taken(store)
    await settle(store, dead=((rows["1"], "gone"),), parked=(rows["2"],), confirmed=(rows["1x"],))
    await put(store, "k:3")
    store.clock_offset_us += 48 * HOUR
    assert await taken(store) == {}


async def test_a_failure_parks_what_was_not_taken_too(store: Storage) -> None:
    await put(store, "k:1", "k:2", "k:3")
    rows = await taken(store, limit=1)
    await settle(store, failed=((rows["1"], HOUR, "why"),))
    assert await taken(store) == {}


async def test_a_key_flows_again_in_its_order_after_its_failure_is_confirmed(store: Storage) -> None:
    await put(store, *(f"k:{number}" for number in range(5)))
    rows = await taken(store)
    await settle(
        store,
        confirmed=(rows["0"],),
        failed=((rows["1"], 0, "why"),),
        parked=(rows["2"], rows["3"], rows["4"]),
    )
    assert list(await taken(store)) == ["1"]
    await settle(store, confirmed=(rows["1"],))
    assert list(await taken(store)) == ["2", "3", "4"]


async def test_a_key_with_a_second_failure_stays_parked(store: Storage) -> None:
    await put(store, "k:1", "k:2", "k:3")
    rows = await taken(store)
    await settle(
        store, failed=((rows["1"], HOUR // 4, "a"), (rows["2"], HOUR // 2, "b")), parked=(rows["3"],)
    )
    store.clock_offset_us += HOUR // 4
    assert list(await taken(store)) == ["1"]
    await settle(store, confirmed=(rows["1"],))
    assert await taken(store) == {}
    store.clock_offset_us += HOUR // 4
    assert list(await taken(store)) == ["2"]


async def test_ordering_keys_that_differ_in_case_accent_or_blank_are_distinct(store: Storage) -> None:
    keys = ["a1", "A1", "á1", "a1 ", "\uff411"]
    await put(store, *(given.message(f"1 {key}", ordering_key=key) for key in keys))
    await put(store, *(given.message(f"2 {key}", ordering_key=key) for key in keys))
    rows = await taken(store)
    await settle(store, dead=((rows["1 a1"], "gone"),), parked=(rows["2 a1"],))
    assert {row.event_id for row in (await take(store)).rows} == set(rows) - {"1 a1", "2 a1"}
    assert {row.ordering_key for row in (await take(store)).rows} == set(keys) - {"a1"}


async def test_one_destinations_failure_does_not_hold_the_key_of_another(store: Storage) -> None:
    await put(store, given.message("a", destination="one", ordering_key="k"))
    await put(store, given.message("b", destination="two", ordering_key="k"))
    (row,) = (await take(store, destination="one")).rows
    assert await store.outbox_settle("one", RELAY, RelayOutcome(dead=((row.id, "gone"),)))
    assert [row.event_id for row in (await take(store, destination="two")).rows] == ["b"]


async def test_a_round_settled_again_after_an_unknown_commit_counts_once(store: Storage) -> None:
    await put(store, "k:1", "k:2", "l:1x", "l:2x", "m:1y", "free")
    rows = await taken(store)
    outcome = RelayOutcome(
        confirmed=(rows["free"], rows["1y"]),
        failed=((rows["1"], HOUR // 2, "refused"),),
        dead=((rows["1x"], "gone"),),
        parked=(rows["2"], rows["2x"]),
    )
    assert await store.outbox_settle("default", RELAY, outcome)
    counts = await store.counts()
    assert await store.outbox_settle("default", RELAY, outcome)
    assert await store.counts() == counts
    store.clock_offset_us += HOUR // 2
    again = await take(store)
    assert [(row.event_id, row.attempts) for row in again.rows] == [("1", 1)]


async def test_a_failure_does_not_hold_what_stands_in_front_of_it(store: Storage) -> None:
    await put(store, "k:1", "k:2", "k:3")
    rows = await taken(store)
    await settle(store, failed=((rows["2"], HOUR, "why"),), parked=(rows["3"],))
    assert list(await taken(store)) == ["1"]
    await settle(store, confirmed=(rows["1"],))
    assert await taken(store) == {}


async def test_rows_without_a_key_wait_for_nobody(store: Storage) -> None:
    await put(store, "a", "b", "c")
    rows = await taken(store)
    await settle(store, failed=((rows["a"], HOUR, "why"),), dead=((rows["b"], "gone"),))
    await put(store, "d")
    assert list(await taken(store)) == ["c", "d"]


async def test_many_rows_are_settled_at_once(store: Storage) -> None:
    await put(store, *(f"k{number % 50}:{number}" for number in range(1_200)))
    rows = await taken(store, limit=2_000)
    assert len(rows) == 1_200
    ids = list(rows.values())
    await settle(store, confirmed=tuple(ids[:1_150]), dead=tuple((one, "gone") for one in ids[1_150:]))
    counts = await store.counts()
    assert (counts["outbox"], counts["outbox.dead"]) == (50, 50)
