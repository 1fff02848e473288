"""Accept: each event once, in order, and whoever waits for it hears of it."""

from dataclasses import replace

import pytest

from edda.errors import StaleRoutingError, StorageDataError
from edda.storage.contract import Storage
from edda.storage.memory import accept as memory
from edda.storage.mysql import accept as mysql
from edda.storage.postgresql import accept as postgresql
from edda.storage.rows import (
    LEFT_AFTER_US,
    AcceptBatch,
    AcceptResult,
    Applied,
    EventResult,
    NewDeadLetter,
    NewEvent,
    PositionAdvance,
    State,
    Verdict,
    WaitKind,
)
from edda.storage.sqlite import accept as sqlite
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP


def verdicts(result: AcceptResult) -> list[Verdict]:
    return [one.verdict for one in result.results]


def seqs(result: AcceptResult) -> list[int]:
    return [one.seq for one in result.results]


# ---------------------------------------------------------------------------------------------- storing


async def test_an_event_nobody_waits_for_is_kept_and_said_to_be_unmatched(store: Storage) -> None:
    before = await store.now()
    result = await given.accepted(store, given.event("e", "a", type="tÿpe", data=b"\0\xff"))
    assert result.results == (EventResult(Verdict.UNMATCHED, 1),)
    assert (result.woken_apps, result.more_hashes, result.stale) == (frozenset(), (), {})
    (event,) = await store.events_of_pattern("*", 0, 10, 10)
    assert (event.seq, event.type, event.source, event.event_id) == (1, "tÿpe", "bank", "e")
    assert (event.attributes, event.data, event.content_type, event.addressee) == (
        b'{"subject":"x"}', b"\0\xff", "application/json", None,
    )  # fmt: skip
    assert before <= event.accepted_at <= await store.now()


async def test_events_get_their_numbers_in_the_order_of_the_batch_and_of_the_batches(store: Storage) -> None:
    first = await given.accepted(store, *(given.event(f"e{number}") for number in (3, 1, 2)))
    second = await given.accepted(store, given.event("e0"))
    assert seqs(first) + seqs(second) == [1, 2, 3, 4]
    events = await store.events_of_pattern("*", 0, 10, 10)
    assert [event.event_id for event in events] == ["e3", "e1", "e2", "e0"]


async def test_an_event_is_never_accepted_before_the_one_in_front_of_it_when_the_clock_goes_back(
    store: Storage,
) -> None:
    await given.accepted(store, given.event("e1"))
    store.clock_offset_us -= given.HOUR
    await given.accepted(store, given.event("e2"))
    first, second = await store.events_of_pattern("*", 0, 10, 10)
    assert second.accepted_at == first.accepted_at


async def test_an_empty_batch_is_accepted(store: Storage) -> None:
    result = await store.accept(given.batch("empty"))
    assert (result.results, result.woken_apps) == ((), frozenset())


async def test_an_event_has_one_row_per_key_however_often_a_key_is_named(store: Storage) -> None:
    await given.accepted(store, given.event("e", "a", "b", "a"))
    assert (await store.counts())["event_keys"] == 2


async def test_a_large_batch_is_accepted_at_once(store: Storage) -> None:
    events = [given.event(f"e{number}", f"k{number}") for number in range(1_500)]
    result = await given.accepted(store, *events)
    assert seqs(result) == list(range(1, 1_501))
    counts = await store.counts()
    assert (counts["events"], counts["identities"], counts["event_keys"]) == (1_500, 1_500, 1_500)


# ---------------------------------------------------------------------------------------------- once


async def test_an_event_that_is_there_is_a_duplicate_and_wakes_nobody(store: Storage) -> None:
    await given.accepted(store, given.event("e0"), given.event("e", "a"))
    await given.started(store, "order")
    await given.flush(store, given.park("order", given.event_wait(1, "a", cursor=2)))
    start = given.instance("started")
    again = await store.accept(given.batch("other", given.event("e", "a", starts=(start,))))
    assert again.results == (EventResult(Verdict.DUPLICATE, 2),)
    assert (await store.counts())["events"] == 2
    assert await given.state(store, "order") is State.WAITING
    assert await store.get_instance("started") is None


async def test_the_same_identity_with_other_content_is_a_conflict_and_is_not_stored(store: Storage) -> None:
    await given.accepted(store, given.event("e"))
    other = given.event("e", data=b"other", data_hash=given.digest("other"))
    again = await store.accept(given.batch("other", other, given.event("next")))
    assert again.results == (EventResult(Verdict.CONFLICT, 1), EventResult(Verdict.UNMATCHED, 2))
    assert [event.data for event in await store.events_of_pattern("*", 0, 1, 9)] == [b'{"amount": 1}']


async def test_of_two_equal_identities_in_one_batch_the_first_wins(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "a"))
    result = await given.accepted(
        store,
        given.event("e", "a"),
        given.event("e", "a"),
        given.event("e", data_hash=given.digest("other")),
        given.event("f"),
    )
    assert result.results == (
        EventResult(Verdict.ACCEPTED, 1, waits=1),
        EventResult(Verdict.DUPLICATE, 1),
        EventResult(Verdict.CONFLICT, 1),
        EventResult(Verdict.UNMATCHED, 2),
    )
    assert (await store.counts())["events"] == 2


async def test_a_batch_sent_again_after_an_unknown_commit_is_accepted_again_and_changes_nothing(
    store: Storage,
) -> None:
    await given.parked(store, "order", given.event_wait(1, "a"))
    batch = given.batch(
        "batch",
        given.event("e1", "a", position=0),
        given.event("e2", position=0, starts=(given.instance("started", live_key=given.digest("key")),)),
        given.event("e2", position=0),
        positions=(PositionAdvance("c", "g", "t", 0, 5, 8),),
        poison=(
            NewDeadLetter("t@7", b"raw", b"[]", "bad", position=0),
            NewDeadLetter("http", b"raw", b"[]", "bad"),
        ),
    )
    first = await store.accept(batch)
    assert verdicts(first) == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.DUPLICATE]
    claimed = await given.claimed(store)
    counts = await store.counts()
    again = await store.accept(batch)
    assert verdicts(again) == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert (seqs(again), again.stale) == ([1, 2, 2], {})
    assert await store.counts() == counts
    assert (await given.row(store, "order")).signals == 1
    assert sorted(claimed) == ["order", "started"]
    following = replace(
        batch, batch_id=b"x" * 16, events=(), positions=(PositionAdvance("c", "g", "t", 0, 8, 9),)
    )
    assert (await store.accept(replace(following, poison=()))).stale == {}


async def test_poison_alone_that_is_sent_again_is_buried_once(store: Storage) -> None:
    letters = (NewDeadLetter("http", b"x", b"[]", "bad"), NewDeadLetter("http", b"x", b"[]", "bad"))
    batch = given.batch("batch", poison=letters)
    await store.accept(batch)
    await store.accept(batch)
    assert (await store.counts())["dead_letters"] == 2
    await store.accept(given.batch("another", poison=letters))
    assert (await store.counts())["dead_letters"] == 4, "another batch of the same deliveries is another"


async def test_poison_with_a_position_that_is_sent_again_is_buried_once_and_not_stale(store: Storage) -> None:
    batch = given.batch(
        "batch",
        positions=(advance(0, 5, 6),),
        poison=(
            NewDeadLetter("t/0@5", b"x", b"[]", "bad", position=0),
            NewDeadLetter("http", b"x", b"[]", "bad"),
        ),
    )
    assert (await store.accept(batch)).stale == {}
    assert (await store.accept(batch)).stale == {}
    assert (await store.counts())["dead_letters"] == 2


async def test_poison_that_a_zombie_left_out_is_not_buried_when_it_repeats_itself(store: Storage) -> None:
    """Its position stands where the zombie would have moved it, but another has moved it there, with the poison."""
    poison = (NewDeadLetter("t/0@5", b"x", b"[]", "bad", position=0),)
    await store.accept(given.batch("owner", positions=(advance(0, 5, 6),), poison=poison))
    zombie = given.batch("zombie", given.event("e"), positions=(advance(0, 5, 6),), poison=poison)
    assert (await store.accept(zombie)).stale == {0: 6}
    assert verdicts(await store.accept(zombie)) == [Verdict.ACCEPTED]
    assert (await store.counts())["dead_letters"] == 1


async def test_a_batch_sent_again_tells_whoever_lives_to_look(store: Storage) -> None:
    """Whom the first try has woken is not known any more, and its hints were never sent."""
    await store.register_worker("w", "other", given.HOUR)
    await given.parked(store, "parked", given.event_wait(1, "a"), app="other")
    batch = given.batch("b", given.event("e1", "a"), given.event("e2", starts=(given.instance("started"),)))
    first = await store.accept(batch)
    assert first.woken_apps == {APP, "other"}
    assert (await store.accept(batch)).woken_apps == first.woken_apps
    again = await store.accept(given.batch("duplicates", *batch.events))
    assert (verdicts(again), again.woken_apps) == ([Verdict.DUPLICATE] * 2, frozenset())


@pytest.mark.parametrize("more", [0, 1])
async def test_a_batch_sent_again_that_has_more_to_tell_forgets_nobody(store: Storage, more: int) -> None:
    """Events of a position that was stale are not stale in a repeat after all: they wake, start and count as new."""
    await given.parked(store, "parked", given.event_wait(1, "b"), app="waits")
    await store.accept(given.batch("0", positions=(advance(0, 0, 10),)))
    batch = given.batch(
        "b",
        given.event("e1", "a"),
        *(
            given.event(f"stale {n}", "b", starts=(given.instance("x", app="starts"),), position=0)
            for n in range(more)
        ),
        positions=(advance(0, 5, 6),),
    )
    assert verdicts(await store.accept(batch)) == [Verdict.UNMATCHED] + [Verdict.STALE_POSITION] * more
    await store.seek_source("c", "g", "t", 0, 6)
    again = await store.accept(batch)
    assert verdicts(again) == [Verdict.ACCEPTED] * (1 + more)
    assert again.woken_apps == ({APP, "waits", "starts"} if more else {APP})


@pytest.mark.usefixtures("one_first_wait")
async def test_a_batch_sent_again_says_what_is_left_to_be_marked(store: Storage) -> None:
    for number in range(3):
        await given.parked(store, f"order-{number}", given.event_wait(1, "a"))
    batch = given.batch("b", given.event("e", "a"))
    left = (await store.accept(batch)).more_hashes
    again = await store.accept(batch)
    assert left == again.more_hashes == (given.digest("a"),)
    assert (await store.counts())["unmarked"] == 1
    assert (await store.mark_due(left))[1] is False
    assert (await store.accept(batch)).more_hashes == ()


async def test_a_batch_sent_again_whose_position_has_moved_on_still_knows_its_events(store: Storage) -> None:
    batch = given.batch(
        "batch", given.event("e1", position=0), positions=(PositionAdvance("c", "g", "t", 0, 0, 1),)
    )
    await store.accept(batch)
    await store.accept(given.batch("next", positions=(PositionAdvance("c", "g", "t", 0, 1, 2),)))
    again = await store.accept(batch)
    assert again.results == (EventResult(Verdict.ACCEPTED, 1),)
    assert (await store.counts())["events"] == 1
    assert (
        await store.accept(given.batch("end", positions=(PositionAdvance("c", "g", "t", 0, 2, 3),)))
    ).stale == {}


async def test_the_same_event_from_two_processes_is_accepted_once(
    store: Storage, another_store: OpenStore
) -> None:
    other = await another_store()
    assert verdicts(await store.accept(given.batch("one", given.event("e")))) == [Verdict.UNMATCHED]
    assert verdicts(await other.accept(given.batch("two", given.event("e")))) == [Verdict.DUPLICATE]


#: For many a database's collation all of these are one word.
ALIKE = ["a1", "A1", "á1", "a1 ", " a1", "a1\t", "\uff411", "a\u03011"]


async def test_identities_that_differ_in_case_accent_or_blank_are_distinct_events(store: Storage) -> None:
    names = ALIKE
    events = [given.event(name, source=name, type=name) for name in names]
    result = await given.accepted(store, *events)
    assert verdicts(result) == [Verdict.UNMATCHED] * len(names)
    stored = await store.events_of_pattern("*", 0, 99, 99)
    assert [(event.event_id, event.source, event.type) for event in stored] == [(name,) * 3 for name in names]
    for name in names:
        assert [event.type for event in await store.events_of_pattern(name, 0, 99, 99)] == [name]


async def test_instances_that_differ_in_case_accent_or_blank_are_distinct(store: Storage) -> None:
    names = ALIKE
    await given.started(store, *names)
    assert await given.applied(store, *(given.park(name, given.event_wait(1, "a")) for name in names)) == [
        Applied.APPLIED
    ] * len(names)
    result = await given.accepted(
        store, *(given.event(f"to {name}", "a", addressee=name) for name in names[:2])
    )
    assert [one.waits for one in result.results] == [1, 1]
    for name in names:
        row = await given.row(store, name)
        assert (row.id, row.chain) == (name, name)
        assert row.state == (State.RUNNABLE if name in names[:2] else State.WAITING)
        assert list(await store.load([name])) == [name]


# ---------------------------------------------------------------------------------------------- waking


async def test_an_event_wakes_every_wait_for_it(store: Storage) -> None:
    for name in ("one", "two"):
        await given.parked(store, name, given.event_wait(1, "a"), app=name)
    await given.parked(store, "other", given.event_wait(1, "b"))
    before = await store.now()
    result = await given.accepted(store, given.event("e", "a", "c"))
    assert result.results == (EventResult(Verdict.ACCEPTED, 1, waits=2),)
    assert result.woken_apps == {"one", "two"}
    for name in ("one", "two"):
        row = await given.row(store, name)
        assert (row.state, row.owner, row.signals, row.fence) == (State.RUNNABLE, None, 1, 1)
        assert row.updated_at >= before
        assert await given.due(store, name) == [1]
    row = await given.row(store, "other")
    assert (row.state, row.signals) == (State.WAITING, 0)


async def test_a_woken_instance_is_available_from_now_on(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "a"), delay_us=0)
    store.clock_offset_us += given.HOUR
    await given.accepted(store, given.event("e", "a"))
    store.clock_offset_us -= given.HOUR
    assert await given.claimed(store) == []
    store.clock_offset_us += given.HOUR
    assert await given.claimed(store) == ["order"]


async def test_an_owned_instance_is_signalled_and_stays_with_its_owner(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    result = await given.accepted(store, given.event("e", "a"))
    assert (result.results[0].waits, result.woken_apps) == (1, frozenset({APP}))
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.signals) == (State.RUNNING, given.WORKER, 1)
    assert await given.due(store, "order") == [1]


async def test_a_wait_that_is_due_is_not_signalled_again(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "a"))
    await given.accepted(store, given.event("e1", "a"))
    result = await given.accepted(store, given.event("e2", "a"))
    assert result.results == (EventResult(Verdict.UNMATCHED, 2),)
    assert (await given.row(store, "order")).signals == 1
    event = await given.first_event(store, "order", 1)
    assert event is not None
    assert event.event_id == "e1"


async def test_two_events_for_one_wait_in_one_batch_signal_once(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "a"), given.event_wait(2, "b"))
    result = await given.accepted(
        store, given.event("e1", "a"), given.event("e2", "a"), given.event("e3", "b")
    )
    assert [one.waits for one in result.results] == [1, 1, 1]
    assert (await given.row(store, "order")).signals == 1
    assert await given.due(store, "order") == [1, 2]


async def test_a_timer_or_a_wait_without_a_hash_is_not_woken_by_an_event(store: Storage) -> None:
    wait = replace(given.timer(1), hash=given.digest("a"))
    child = replace(given.timer(2), kind=WaitKind.CHILD)
    await given.parked(store, "order", wait, child)
    result = await given.accepted(store, given.event("e", "a"))
    assert verdicts(result) == [Verdict.UNMATCHED]
    assert await given.state(store, "order") is State.WAITING


async def test_a_paused_instance_is_signalled_and_stays_paused(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.flush(store, given.end("order", end_state=State.PAUSED))
    result = await given.accepted(store, given.event("e", "a"))
    assert result.results[0].waits == 1
    row = await given.row(store, "order")
    assert (row.state, row.signals) == (State.PAUSED, 1)


# ---------------------------------------------------------------------------------------------- addressed


async def test_an_addressed_event_wakes_only_the_chain_it_is_for(store: Storage) -> None:
    await given.parked(store, "mine", given.event_wait(1, "a"), chain="root")
    await given.parked(store, "sibling", given.event_wait(1, "a"), chain="root")
    await given.parked(store, "other", given.event_wait(1, "a"))
    result = await given.accepted(store, given.event("e", "a", addressee="mine"))
    assert result.results == (EventResult(Verdict.ACCEPTED, 1, waits=2),)
    assert [await given.state(store, one) for one in ("mine", "sibling", "other")] == [
        State.RUNNABLE, State.RUNNABLE, State.WAITING,
    ]  # fmt: skip
    (event,) = await store.events_of_pattern("*", 0, 9, 9)
    assert event.addressee == "root"


async def test_an_event_for_an_instance_that_does_not_exist_yet_waits_for_it(store: Storage) -> None:
    result = await given.accepted(store, given.event("e", "a", addressee="later"))
    assert verdicts(result) == [Verdict.UNMATCHED]
    await given.started(store, "later")
    assert await given.applied(store, given.park("later", given.event_wait(1, "a"))) == [Applied.KEPT]


async def test_an_event_for_an_ended_instance_is_stored_and_wakes_nobody(store: Storage) -> None:
    await given.started(store, "ended", chain="root")
    await given.parked(store, "sibling", given.event_wait(1, "a"), chain="root")
    await given.flush(store, given.end("ended"))
    result = await given.accepted(store, given.event("e", "a", addressee="ended"))
    assert result.results == (EventResult(Verdict.UNMATCHED, 1),)
    assert await given.state(store, "sibling") is State.WAITING
    (event,) = await store.events_of_pattern("*", 0, 9, 9)
    assert event.addressee == "root"


async def test_an_event_for_a_run_that_has_recurred_reaches_the_one_that_follows_it(store: Storage) -> None:
    await given.started(store, "first", chain="first")
    await given.parked(store, "second", given.event_wait(1, "a"), chain="first")
    await given.flush(store, given.end("first", end_state=State.RECURRED))
    result = await given.accepted(store, given.event("e", "a", addressee="first"))
    assert result.results == (EventResult(Verdict.ACCEPTED, 1, waits=1),)
    assert await given.state(store, "second") is State.RUNNABLE


async def test_addressed_and_open_events_with_one_key_in_one_batch_reach_whom_they_are_for(
    store: Storage,
) -> None:
    await given.parked(store, "a", given.event_wait(1, "k"))
    await given.parked(store, "b", given.event_wait(1, "k"))
    result = await given.accepted(store, given.event("e1", "k", addressee="a"), given.event("e2", "k"))
    assert [one.waits for one in result.results] == [1, 2]
    firsts = [await given.first_event(store, one, 1) for one in "ab"]
    assert [event and event.event_id for event in firsts] == ["e1", "e2"]


# ---------------------------------------------------------------------------------------------- starts


async def test_a_trigger_starts_an_instance_that_knows_its_event(store: Storage) -> None:
    await given.accepted(store, given.event("e0"))
    starts = (given.instance("x", app="one"), given.instance("y", app="two", version="3"))
    before = await store.now()
    result = await given.accepted(store, given.event("e", "a", starts=starts))
    assert result.results == (EventResult(Verdict.ACCEPTED, 2, starts=2),)
    assert result.woken_apps == {"one", "two"}
    row = await given.row(store, "x")
    assert (row.state, row.owner, row.fence) == (State.RUNNABLE, None, 0)
    await store.register_worker("w", "two", given.HOUR)
    (claimed,) = await store.claim("two", ["order"], "w", 1, [("order", "3")])
    assert (claimed.id, claimed.start_event, claimed.version) == ("y", 2, "3")
    assert claimed.chain_started_at >= before


async def test_an_event_whose_key_has_a_live_run_is_accepted_and_starts_nothing(store: Storage) -> None:
    key = given.digest("key")
    first = await given.accepted(store, given.event("e1", starts=(given.instance("x", live_key=key),)))
    second = await given.accepted(store, given.event("e2", starts=(given.instance("y", live_key=key),)))
    assert first.results == (EventResult(Verdict.ACCEPTED, 1, starts=1),)
    assert second.results == (EventResult(Verdict.ACCEPTED, 2, starts=0),)
    assert second.woken_apps == frozenset()
    assert await store.get_instance("y") is None


async def test_of_two_events_with_one_live_key_in_one_batch_one_starts_a_run(store: Storage) -> None:
    key = given.digest("key")
    events = [
        given.event(name, starts=(given.instance(f"run of {name}", live_key=key),)) for name in ("e1", "e2")
    ]
    result = await given.accepted(store, *events)
    assert verdicts(result) == [Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert sorted(one.starts for one in result.results) == [0, 1]
    assert (await store.counts())["instances"] == 1


async def test_a_taken_id_starts_nothing(store: Storage) -> None:
    await given.started(store, "order")
    result = await given.accepted(
        store, given.event("e", starts=(given.instance("order", workflow="other"),))
    )
    assert result.results == (EventResult(Verdict.ACCEPTED, 1, starts=0),)
    assert (await given.row(store, "order")).workflow == "order"


# ---------------------------------------------------------------------------------------------- more than fits


async def test_more_than_a_thousand_waits_are_woken_in_pieces_until_none_is_left(store: Storage) -> None:
    names = [f"order-{number:04}" for number in range(1_300)]
    await given.started(store, *names)
    parked = await given.applied(store, *(given.park(one, given.event_wait(1, "a")) for one in names))
    assert set(parked) == {Applied.APPLIED}
    result = await given.accepted(store, given.event("e", "a"))
    assert verdicts(result) == [Verdict.ACCEPTED]
    assert (result.results[0].waits, result.more_hashes) == (1_000, (given.digest("a"),))
    assert (await store.counts())["instances.runnable"] == 1_000
    assert await store.mark_due(result.more_hashes, limit=200) == (frozenset({APP}), True)
    assert (await store.counts())["instances.runnable"] == 1_200
    assert await store.mark_due(result.more_hashes, limit=200) == (frozenset({APP}), False)
    assert (await store.counts())["instances.runnable"] == 1_300
    assert await store.mark_due(result.more_hashes) == (frozenset(), False)


@pytest.fixture
def one_first_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept marks one wait, and leaves the others."""
    for module in (memory, mysql, postgresql, sqlite):
        monkeypatch.setattr(module, "FIRST_WAITS", 1)


@pytest.mark.usefixtures("one_first_wait")
async def test_waits_that_an_accept_has_left_are_known_until_they_are_marked(store: Storage) -> None:
    for name in ("one", "two", "three"):
        await given.parked(store, name, given.event_wait(1, "a"))
    batch = given.batch("b", given.event("e1", "a"), given.event("e2", "b"), given.event("e3", "a"))
    left = (await store.accept(batch)).more_hashes
    assert given.digest("a") in left
    assert (await store.counts())["unmarked"] == len(left)
    store.clock_offset_us -= given.HOUR  # however slow the test
    assert (await store.left_unmarked(), (await store.poll(APP)).unmarked) == ([], False), "it is fresh"
    store.clock_offset_us += given.HOUR + LEFT_AFTER_US
    assert (sorted(await store.left_unmarked()), (await store.poll(APP)).unmarked) == (sorted(left), True)
    heart = store.heart()
    assert (await heart.beat(given.OTHER, "another app", given.HOUR)).unmarked, "whoever asks"
    await heart.close()
    assert await store.mark_due([given.digest("a")], limit=1) == (frozenset({APP}), True)
    assert given.digest("a") in await store.left_unmarked()
    assert await store.mark_due([given.digest("a")], limit=1) == (frozenset({APP}), False)
    assert given.digest("a") not in await store.left_unmarked()
    assert await store.mark_due(left) == (frozenset(), False)
    assert ((await store.counts())["unmarked"], (await store.poll(APP)).unmarked) == (0, False)
    assert [await given.due(store, name) for name in ("one", "two", "three")] == [[1]] * 3


@pytest.mark.usefixtures("one_first_wait")
async def test_an_accept_that_marks_all_leaves_nothing(store: Storage) -> None:
    await given.parked(store, "one", given.event_wait(1, "a"))
    await given.accepted(store, given.event("e", "a", "b"))
    assert (await store.counts())["unmarked"] == 0


@pytest.mark.usefixtures("one_first_wait")
async def test_what_is_left_is_looked_for_some_at_a_time_the_oldest_first(store: Storage) -> None:
    for key in ("a", "b"):
        for number in range(2):
            await given.parked(store, f"{key}{number}", given.event_wait(1, key))
        await given.accepted(store, given.event(f"e{key}", key))
        store.clock_offset_us += given.HOUR
    assert await store.left_unmarked(1) == [given.digest("a")]
    assert await store.left_unmarked() == [given.digest("a"), given.digest("b")]


async def test_an_event_whose_waits_come_after_the_first_thousand_is_not_unmatched(store: Storage) -> None:
    names = [f"order-{number:04}" for number in range(1_100)]
    await given.started(store, *names)
    await given.flush(store, *(given.park(one, given.event_wait(1, "a")) for one in names[:1_000]))
    await given.flush(store, *(given.park(one, given.event_wait(1, "b")) for one in names[1_000:]))
    result = await given.accepted(store, given.event("e1", "a"), given.event("e2", "b"))
    assert verdicts(result) == [Verdict.ACCEPTED, Verdict.ACCEPTED]
    more = True
    while more:
        _, more = await store.mark_due(result.more_hashes)
    assert (await store.counts())["instances.runnable"] == 1_100


async def test_marking_due_by_anybody_at_any_time_marks_what_has_an_unreceived_event_and_nothing_else(
    store: Storage,
) -> None:
    await given.parked(store, "behind", given.event_wait(1, "a", cursor=9))
    await given.parked(store, "skips", given.event_wait(1, "b", skip=2))
    await given.parked(store, "other", given.event_wait(1, "c"))
    await given.accepted(
        store, given.event("e1"), given.event("e2"), given.event("e3", "c", addressee="nobody")
    )
    shape = await store.register_shape("x", ())
    await store.backfill(
        shape.id,
        [(given.digest("a"), "", 1), (given.digest("b"), "", 2), (given.digest("d"), "", 1)],
        done=False,
    )
    hashes = [given.digest(key) for key in "abcd"]
    assert await store.mark_due(hashes) == (frozenset(), False)
    await store.backfill(shape.id, [(given.digest("b"), "", 1), (given.digest("c"), "other", 1)], done=False)
    assert await store.mark_due([*hashes, *hashes]) == (frozenset({APP}), False)
    assert [await given.due(store, one) for one in ("behind", "skips", "other")] == [[], [1], [1]]
    assert await store.mark_due(hashes) == (frozenset(), False)
    assert await store.mark_due([]) == (frozenset(), False)


# ---------------------------------------------------------------------------------------------- positions


def advance(partition: int, fetched_from: int, next_offset: int, **changes: str) -> PositionAdvance:
    where = {"cluster": "c", "group": "g", "topic": "t"} | changes
    return PositionAdvance(
        where["cluster"], where["group"], where["topic"], partition, fetched_from, next_offset
    )


async def test_a_new_position_is_inserted_and_a_known_one_advanced(store: Storage) -> None:
    first = await store.accept(given.batch("1", positions=(advance(0, 7, 9), advance(1, 0, 4))))
    second = await store.accept(given.batch("2", positions=(advance(1, 4, 5), advance(0, 9, 12))))
    assert (first.stale, second.stale) == ({}, {})
    third = await store.accept(given.batch("3", positions=(advance(1, 4, 6), advance(0, 12, 13))))
    assert third.stale == {0: 5}


async def test_a_stale_position_leaves_its_events_and_poison_out_and_no_others(store: Storage) -> None:
    await store.accept(given.batch("1", positions=(advance(0, 0, 10),)))
    result = await store.accept(
        given.batch(
            "2",
            given.event("stale", position=0),
            given.event("good", position=1),
            given.event("free"),
            positions=(advance(0, 5, 6), advance(1, 0, 3)),
            poison=(
                NewDeadLetter("t/0@5", b"x", b"[]", "bad", position=0),
                NewDeadLetter("t/1@2", b"x", b"[]", "bad", position=1),
                NewDeadLetter("http", b"x", b"[]", "bad"),
            ),
        )
    )
    assert verdicts(result) == [Verdict.STALE_POSITION, Verdict.UNMATCHED, Verdict.UNMATCHED]
    assert seqs(result) == [0, 1, 2]
    assert result.stale == {0: 10}
    counts = await store.counts()
    assert (counts["dead_letters"], counts["events"], counts["source_positions"]) == (2, 2, 2)


async def test_an_event_left_out_as_stale_is_accepted_when_it_comes_again(store: Storage) -> None:
    await store.accept(given.batch("1", positions=(advance(0, 0, 10),)))
    await store.accept(given.batch("2", given.event("e", position=0), positions=(advance(0, 5, 6),)))
    result = await store.accept(
        given.batch("3", given.event("e", position=0), positions=(advance(0, 10, 11),))
    )
    assert verdicts(result) == [Verdict.UNMATCHED]


async def test_a_zombie_that_knows_only_old_events_is_told_its_position_is_stale(store: Storage) -> None:
    await store.accept(given.batch("1", given.event("e", position=0), positions=(advance(0, 0, 1),)))
    zombie = await store.accept(given.batch("2", given.event("e", position=0), positions=(advance(0, 0, 1),)))
    assert (verdicts(zombie), zombie.stale) == ([Verdict.STALE_POSITION], {0: 1})


async def test_positions_of_other_clusters_groups_topics_and_partitions_are_their_own(store: Storage) -> None:
    others = (
        advance(0, 0, 1),
        advance(1, 0, 2),
        advance(0, 0, 3, topic="u"),
        advance(0, 0, 4, topic="T"),
        advance(0, 0, 5, group="h"),
        advance(0, 0, 6, cluster="d"),
    )
    assert (await store.accept(given.batch("1", positions=others))).stale == {}
    stale = await store.accept(
        given.batch("2", positions=tuple(replace(one, fetched_from=99) for one in others))
    )
    assert stale.stale == dict(enumerate(range(1, 7)))


# ---------------------------------------------------------------------------------------------- refused batches


async def test_a_batch_for_an_older_routing_is_refused_whole(store: Storage) -> None:
    await store.register_shape("paid", ())
    batch = given.batch(
        "b",
        given.event("e", starts=(given.instance("x"),)),
        version=1,
        positions=(advance(0, 0, 1),),
        poison=(NewDeadLetter("http", b"x", b"[]", "bad"),),
    )
    before = await store.counts()
    with pytest.raises(StaleRoutingError):
        await store.accept(batch)
    assert await store.counts() == before
    assert seqs(await store.accept(replace(batch, routing_version=2))) == [1]


REFUSED = {
    "source": given.event("bad", source="\ud800"),
    "event_id": given.event("bad", event_id="\udfff"),
    "addressee": given.event("bad", addressee="\ud800"),
    "start": given.event("bad", starts=(given.instance("\ud800"),)),
}


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED.keys())
async def test_a_value_that_cannot_be_stored_is_refused_with_all_that_came_with_it(
    store: Storage, bad: NewEvent
) -> None:
    await given.parked(store, "order", given.event_wait(1, "a"))
    positions = (advance(0, 0, 1),)
    batch = given.batch("b", given.event("good", "a"), bad, positions=positions)
    before = await store.counts()
    with pytest.raises(StorageDataError):
        await store.accept(batch)
    assert await store.counts() == before
    assert await given.state(store, "order") is State.WAITING
    good = await store.accept(replace(batch, events=batch.events[:1]))
    assert (verdicts(good), good.stale) == ([Verdict.ACCEPTED], {})


@pytest.mark.parametrize(
    "long",
    [given.event("bad", type="x" * 300), given.event("bad", addressee="x" * 300)],
    ids=["type", "addressee"],
)
async def test_a_key_that_is_too_long_is_never_cut(store: Storage, long: NewEvent) -> None:
    try:
        await store.accept(given.batch("b", given.event("good"), long))
    except StorageDataError:
        assert (await store.counts())["events"] == 0
    else:
        assert store.dialect == "sqlite", "SQLite knows no lengths"


async def test_a_nul_in_text_is_stored_whole_or_refused_whole(store: Storage) -> None:
    nul = given.event("bad", event_id="a\0b", data=b"\0", attributes=b'{"subject":"\\u0000"}')
    try:
        await store.accept(given.batch("b", given.event("good"), nul))
    except StorageDataError:
        assert store.dialect == "postgresql"
        assert (await store.counts())["events"] == 0
    else:
        assert [one.event_id for one in await store.events_of_pattern("*", 1, 9, 9)] == ["a\0b"]


async def test_a_start_that_knows_when_its_chain_began_keeps_it(store: Storage) -> None:
    await given.accepted(
        store, given.event("e", starts=(given.instance("x", chain="root", chain_started_at=17),))
    )
    (claimed,) = await store.claim(APP, ["order"], given.WORKER, 1)
    assert (claimed.chain, claimed.chain_started_at, claimed.start_event) == ("root", 17, 1)


async def test_poison_is_kept(store: Storage) -> None:
    letters = (
        NewDeadLetter("kafka:t/0@1", bytes(range(256)), b"[]", "not JSON ü"),
        NewDeadLetter("http", b"", b"[]", "empty", attempts=3),
    )
    await store.accept(given.batch("b", poison=letters))
    assert (await store.counts())["dead_letters"] == 2


async def test_positions_are_read_by_group_and_moved_by_an_operator(store: Storage) -> None:
    advance = PositionAdvance("c", "g", "orders", 3, 0, 7)
    await store.accept(AcceptBatch(b"1" * 16, (await store.routing()).version, (), (), (advance,)))
    assert await store.source_positions("c", "g") == {("orders", 3): 7}
    assert await store.source_positions("c", "G") == {}
    await store.seek_source("c", "g", "orders", 3, 2)
    await store.seek_source("c", "g", "orders", 4, 5)
    assert await store.source_positions("c", "g") == {("orders", 3): 2, ("orders", 4): 5}
    result = await store.accept(
        AcceptBatch(b"2" * 16, (await store.routing()).version, (), (), (replace(advance, fetched_from=7),))
    )
    assert result.stale == {0: 2}
