"""One bad member of a batch fails alone: its neighbours are written, once."""

import asyncio
import json
from dataclasses import replace

import pytest
import sqlalchemy as sa

from edda.cloudevent import CloudEvent
from edda.engine.journal import Journal, Outcome
from edda.errors import StorageDataError
from edda.inbox.accept import Inbox, Positioned
from edda.storage.contract import Storage
from edda.storage.rows import Applied, NewDeadLetter, Record, Turn, TurnResult, Verdict
from edda.storage.schema import dead_letters, events, history, identities, outbox, source_positions
from tests.interleavings import given
from tests.interleavings.lost import Lossy
from tests.interleavings.raw import Raw
from tests.interleavings.refusal import refuse


class Writer:
    """One instance's turns, as a run hands them to the journal: what gathers while one is in flight is one turn."""

    def __init__(self, journal: Journal, first: Turn) -> None:
        self._journal = journal
        self._next: Turn | None = first
        self.outcomes: list[tuple[Turn, Outcome]] = []
        self.answered = asyncio.Event()
        journal.submit(self)

    def add(self, turn: Turn) -> None:
        if self._next is None:
            self._next = turn
        else:
            self._next.records.extend(turn.records)
        self.answered.clear()
        self._journal.submit(self)

    def take_turn(self) -> Turn | None:
        taken, self._next = self._next, None
        return taken

    def flushed(self, turn: Turn, outcome: Outcome, now_us: int) -> None:
        self.outcomes.append((turn, outcome))
        self.answered.set()

    @property
    def applied(self) -> list[Applied | None]:
        """What became of each turn; None: refused by the database."""
        return [outcome.applied if isinstance(outcome, TurnResult) else None for _, outcome in self.outcomes]


def bad(turn: Turn) -> Turn:
    """With a record that no database stores: its name has no UTF-8."""
    turn.records.append(Record(99, 99, "activity", "\ud800", b"1"))
    return turn


# ---------------------------------------------------------------------------------------------- the journal


@pytest.mark.parametrize("culprits", [{0}, {7}, {19}, {3, 4}, {0, 10, 19}, set(range(20))], ids=str)
async def test_a_value_that_cannot_be_stored_fails_its_own_turn_and_no_other(
    store: Storage, raw: Raw, culprits: set[int]
) -> None:
    journal = Journal(store)
    turns = [given.start(f"i{number:02}") for number in range(20)]
    for turn in turns:
        turn.outbox.append(given.message(turn.instance_id))
    for number in culprits:
        bad(turns[number])
    writers = [Writer(journal, turn) for turn in turns]
    await journal.drained()
    expected = [None if number in culprits else Applied.APPLIED for number in range(20)]
    assert [writer.applied for writer in writers] == [[one] for one in expected]
    good = {f"i{number:02}" for number in set(range(20)) - culprits}
    assert {row.instance_id for row in await raw.rows(history.select())} == good
    assert sorted(row.event_id for row in await raw.rows(outbox.select())) == sorted(good)


async def test_a_refusal_of_the_databases_own_fails_one_turn_and_says_why(store: Storage, raw: Raw) -> None:
    """As by a constraint that somebody has added: nobody could have seen it before."""
    await refuse(raw, outbox.c.event_id, "cursed")
    journal = Journal(store)
    turns = [given.start(name) for name in ("a", "b", "c", "d", "e")]
    for turn in turns:
        turn.outbox.append(given.message("cursed" if turn.instance_id == "c" else turn.instance_id))
    writers = [Writer(journal, turn) for turn in turns]
    await journal.drained()
    assert [writer.applied for writer in writers] == [
        [Applied.APPLIED],
        [Applied.APPLIED],
        [None],
        [Applied.APPLIED],
        [Applied.APPLIED],
    ]
    ((_, error),) = writers[2].outcomes
    assert isinstance(error, StorageDataError)
    assert "cursed is not welcome here" in str(error)
    assert await raw.count(history) == await raw.count(outbox) == 4


async def test_a_lost_fence_and_a_bad_value_among_others_are_told_apart(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.flush([given.start(name) for name in "abcde"])
    await raw.execute("UPDATE edda_instances SET fence = 2, owner = 'somebody' WHERE id = 'b'")
    journal = Journal(store)
    turns = {name: given.step(name, 2) for name in "abcde"}
    bad(turns["d"])
    writers = {name: Writer(journal, turn) for name, turn in turns.items()}
    await journal.drained()
    told = {name: writer.applied for name, writer in writers.items()}
    assert told == {
        "a": [Applied.APPLIED],
        "b": [Applied.LOST],
        "c": [Applied.APPLIED],
        "d": [None],
        "e": [Applied.APPLIED],
    }


async def test_a_taken_id_is_a_result_and_not_an_error(store: Storage, other: Storage, raw: Raw) -> None:
    await other.flush([given.start("taken", owner="b", live_key="k")])
    journal = Journal(store)
    turns = [given.start("x"), given.start("taken"), given.start("y", live_key="k"), given.start("z")]
    writers = [Writer(journal, turn) for turn in turns]
    await journal.drained()
    assert [writer.applied for writer in writers] == [
        [Applied.APPLIED],
        [Applied.EXISTS],
        [Applied.EXISTS],
        [Applied.APPLIED],
    ]
    assert journal.flushes == 1
    assert await raw.count(history) == 3


async def test_what_one_instance_hands_over_while_a_flush_is_in_flight_goes_as_one_turn(
    store: Storage, raw: Raw
) -> None:
    """Two turns of one instance in one statement: one of them would be applied, silently."""
    journal = Journal(store)
    writers = [Writer(journal, given.start(name)) for name in ("gathering", "neighbour")]
    await asyncio.sleep(0)  # the first flush takes them
    for seq in range(2, 12):
        writers[0].add(given.step("gathering", seq))
    writers[1].add(given.step("neighbour", 2))
    await journal.drained()
    assert journal.flushes == 2
    assert [len(turn.records) for turn, _ in writers[0].outcomes] == [1, 10]
    assert [record.seq for record in await store.get_history("gathering")] == list(range(1, 12))


async def test_neighbours_are_written_once_though_an_answer_was_lost_on_the_way_to_the_culprit(
    lossy: Lossy, raw: Raw
) -> None:
    """Halving, and in the middle of it an unknown commit: the half is sent again."""
    journal = Journal(lossy.store)
    turns = [given.start(f"i{number}") for number in range(8)]
    for turn in turns:
        turn.outbox.append(given.message(turn.instance_id))
    bad(turns[5])

    async def first_half_committed() -> bool:
        return await raw.count(history) > 0

    if lossy.proxy is not None:
        lossy.proxy.cut_once(first_half_committed)
    writers = [Writer(journal, turn) for turn in turns]
    await journal.drained()
    assert lossy.proxy is None or lossy.proxy.cuts == 1
    expected = [None if number == 5 else Applied.APPLIED for number in range(8)]
    assert [writer.applied for writer in writers] == [[one] for one in expected]
    assert await raw.count(history) == await raw.count(outbox) == 7


# ---------------------------------------------------------------------------------------------- accept


def cloud_event(name: str) -> CloudEvent:
    return CloudEvent(id=name, source="bank", type="paid", data=b"{}")


@pytest.mark.parametrize("culprits", [{0}, {4}, {11}, {2, 3, 9}, set(range(12))], ids=str)
async def test_an_event_that_the_database_refuses_is_refused_alone(
    store: Storage, raw: Raw, culprits: set[int]
) -> None:
    await refuse(raw, events.c.type, "cursed")
    made = [cloud_event(f"e{number}") for number in range(12)]
    made = [replace(one, type="cursed") if at in culprits else one for at, one in enumerate(made)]
    inbox = Inbox(store)
    answers = await asyncio.gather(*(inbox.deliver(made[at : at + 3]) for at in range(0, 12, 3)))
    verdicts = [result.verdict for answer in answers for result in answer]
    expected = [Verdict.REFUSED if at in culprits else Verdict.UNMATCHED for at in range(12)]
    assert verdicts == expected
    reasons = [result.reason for answer in answers for result in answer]
    assert [at for at, reason in enumerate(reasons) if "not welcome here" in reason] == sorted(culprits)
    good = {f"e{at}" for at in set(range(12)) - culprits}
    assert {row.event_id for row in await raw.rows(events.select())} == good
    assert await raw.count(identities) == len(good)
    # Nothing of it is left behind: were the reason gone, it would be accepted.
    again = await inbox.deliver(made)
    assert {result.verdict for result in again} <= {Verdict.DUPLICATE, Verdict.REFUSED}
    await inbox.close()


async def test_a_refused_record_of_a_partition_leaves_a_dead_letter_and_its_neighbours_and_the_position(
    store: Storage, raw: Raw
) -> None:
    await refuse(raw, events.c.type, "cursed")
    made = [cloud_event(f"e{number}") for number in range(6)]
    made[3] = replace(made[3], type="cursed")

    def letter(at: int) -> NewDeadLetter:
        headers = json.dumps([]).encode()
        return NewDeadLetter(f"kafka:payments/0@{at}", b"raw", headers, "", position=0)

    items = [
        Positioned(one, 0, lambda reason, at=at: replace(letter(at), reason=reason))  # type: ignore[misc]
        for at, one in enumerate(made)
    ]
    poison = [replace(letter(6), reason="no JSON")]
    inbox = Inbox(store)
    results, stale = await inbox.accept_batch(items, [given.advance(0, 7)], poison)
    assert [result.verdict for result in results] == [
        Verdict.REFUSED if at == 3 else Verdict.UNMATCHED for at in range(6)
    ]
    assert stale == {}
    assert await raw.count(events) == 5
    letters = {row.origin: row.reason for row in await raw.rows(dead_letters.select())}
    assert set(letters) == {"kafka:payments/0@3", "kafka:payments/0@6"}
    assert "not welcome here" in letters["kafka:payments/0@3"]
    assert await raw.scalar(sa.select(source_positions.c.next_offset)) == 7
    # A crash before the offsets were committed to the broker: everything comes again, and is known.
    _, stale = await inbox.accept_batch(items, [given.advance(0, 7)], poison)
    assert stale == {0: 7}
    assert await raw.count(events) == 5
    await inbox.close()


async def test_events_are_accepted_once_though_the_answer_was_lost(lossy: Lossy, raw: Raw) -> None:
    """By the inbox itself: its callers hear of the commit, and of no trouble."""
    inbox = Inbox(lossy.store)
    if lossy.proxy is not None:
        await inbox.deliver([cloud_event("before")])

        async def committed() -> bool:
            return await raw.count(events) > 1

        lossy.proxy.cut_once(committed)
    answers = await asyncio.gather(*(inbox.deliver([cloud_event(f"e{number}")]) for number in range(5)))
    verdicts = {result.verdict for answer in answers for result in answer}
    assert verdicts == ({Verdict.UNMATCHED} if lossy.proxy is None else {Verdict.ACCEPTED})
    assert await raw.count(events) == await raw.count(identities) == (5 if lossy.proxy is None else 6)
    await inbox.close()
