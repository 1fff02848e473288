"""Deliveries share accept transactions; what became of each is told after the commit, whatever happens on the way."""

from __future__ import annotations

import asyncio

import pytest

from edda.errors import StorageUnavailableError
from edda.inbox import accept
from edda.inbox.accept import OverloadedError
from edda.storage.contract import Storage
from edda.storage.rows import Trigger, Verdict
from tests.inbox.conftest import MakeInbox
from tests.inbox.given import event, many, stored
from tests.inbox.wire import Wire
from tests.support.eventually import eventually


async def test_an_event_is_stored_when_deliver_returns(store: Storage, make_inbox: MakeInbox) -> None:
    [result] = await make_inbox(store).deliver([event()])
    assert (result.verdict, result.seq) == (Verdict.UNMATCHED, 1)
    assert await stored(store) == ["a-1"]


async def test_the_same_event_again_is_a_duplicate_and_another_one_with_its_id_a_conflict(
    store: Storage, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(store)
    await inbox.deliver([event()])
    again, other, elsewhere = await inbox.deliver(
        [event(), event(data=b'{"a":2}'), event("a-1", subject="x")]
    )
    assert (again.verdict, again.seq) == (Verdict.DUPLICATE, 1)
    assert (other.verdict, other.seq) == (Verdict.CONFLICT, 1)
    assert elsewhere.verdict is Verdict.CONFLICT
    assert await stored(store) == ["a-1"]


async def test_ids_that_a_collation_takes_for_equal_are_different_events(
    store: Storage, make_inbox: MakeInbox
) -> None:
    ids = ["a1", "A1", "a1 ", "á1", "a\uff11"]
    results = await make_inbox(store).deliver([event(name) for name in ids])
    assert [result.verdict for result in results] == [Verdict.UNMATCHED] * 5
    assert await stored(store) == ids


async def test_two_copies_in_one_delivery_are_one_event(lite: Storage, make_inbox: MakeInbox) -> None:
    results = await make_inbox(lite).deliver([event(), event(), event("a-2"), event(data=b"1")])
    assert [result.verdict for result in results] == [
        Verdict.UNMATCHED,
        Verdict.DUPLICATE,
        Verdict.UNMATCHED,
        Verdict.CONFLICT,
    ]
    assert await stored(lite) == ["a-1", "a-2"]


async def test_deliveries_that_come_together_share_transactions(lite: Storage, make_inbox: MakeInbox) -> None:
    wire = Wire(lite)
    inbox = make_inbox(wire)
    results = await asyncio.gather(*(inbox.deliver([item]) for item in many(400)))
    assert len(wire.sent) == 1
    assert sorted(result.seq for [result] in results) == list(range(1, 401))


async def test_what_comes_while_one_is_in_flight_shares_the_next(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    wire.open.clear()
    inbox = make_inbox(wire)
    first = asyncio.create_task(inbox.deliver([event("first")]))
    await wire.waiting.wait()
    others = [asyncio.create_task(inbox.deliver([item])) for item in many(1_100)]
    await asyncio.sleep(0)
    assert len(wire.sent) == 1  # one in flight
    wire.open.set()
    await asyncio.gather(first, *others)
    assert [len(batch.events) for batch in wire.sent] == [1, 500, 500, 100]


async def test_a_large_delivery_takes_several_transactions_and_is_answered_in_order(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    results = await make_inbox(wire).deliver(many(1_200))
    assert [len(batch.events) for batch in wire.sent] == [500, 500, 200]
    assert [result.seq for result in results] == list(range(1, 1_201))


async def test_a_transaction_is_bounded_in_bytes_too(lite: Storage, make_inbox: MakeInbox) -> None:
    wire = Wire(lite)
    one_mib = b'"' + b"x" * 2**20 + b'"'
    await make_inbox(wire).deliver(many(9, data=one_mib))
    assert [len(batch.events) for batch in wire.sent] == [3, 3, 3]


async def test_a_cancelled_callers_event_is_accepted_all_the_same(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    wire.open.clear()
    inbox = make_inbox(wire)
    tasks = [asyncio.create_task(inbox.deliver([event("in-flight")]))]
    await wire.waiting.wait()
    tasks.append(asyncio.create_task(inbox.deliver([event("waiting")])))
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    wire.open.set()
    await inbox.close()
    assert await stored(lite) == ["in-flight", "waiting"]


async def test_close_finishes_what_was_handed_in(lite: Storage, make_inbox: MakeInbox) -> None:
    wire = Wire(lite)
    wire.open.clear()
    inbox = make_inbox(wire)
    tasks = [asyncio.create_task(inbox.deliver([item])) for item in many(20)]
    await wire.waiting.wait()
    closing = asyncio.create_task(inbox.close())
    wire.open.set()
    await closing
    assert all(task.done() for task in tasks) or await asyncio.gather(*tasks)
    assert len(await stored(lite)) == 20


# ---------------------------------------------------------------------------------------------- a database that fails


async def test_a_lost_answer_is_asked_for_again_with_the_same_batch_id(
    store: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(store)
    wire.lost_answers = 2
    [first, second] = await make_inbox(wire).deliver([event("a-1"), event("a-2")])
    assert [first.verdict, second.verdict] == [Verdict.ACCEPTED] * 2  # and not: duplicates of themselves
    assert (first.seq, second.seq) == (1, 2)
    assert len({batch.batch_id for batch in wire.sent}) == 1
    assert len(wire.sent) == 3
    assert await stored(store) == ["a-1", "a-2"]


async def test_a_lost_answer_starts_nothing_twice(store: Storage, make_inbox: MakeInbox) -> None:
    await store.declare_triggers([Trigger("shop", "fulfil", "order.created")])
    wire = Wire(store)
    wire.lost_answers = 1
    await make_inbox(wire).deliver([event()])
    assert (await store.counts())["instances"] == 1


async def test_a_database_that_is_away_for_a_moment_is_waited_for(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    wire.lost_requests = 3
    [result] = await make_inbox(wire).deliver([event()])
    assert result.verdict is Verdict.UNMATCHED


async def test_a_database_that_stays_away_is_told_to_the_caller(lite: Storage, make_inbox: MakeInbox) -> None:
    wire = Wire(lite)
    wire.lost_requests = 10_000
    inbox = make_inbox(wire, patience=0.1)
    with pytest.raises(StorageUnavailableError):
        await inbox.deliver([event()])
    wire.lost_requests = 0
    inbox._patience = 30
    [result] = await inbox.deliver([event()])
    # The last of the tries that were given up may have come through.
    assert result.verdict in {Verdict.UNMATCHED, Verdict.DUPLICATE}


async def test_a_database_that_hangs_is_told_to_the_caller_and_not_waited_for_ever(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    wire.open.clear()
    inbox = make_inbox(wire, patience=0.1)
    with pytest.raises(StorageUnavailableError, match="unknown"):
        await inbox.deliver([event()])
    wire.open.set()
    inbox._patience = 30
    [again] = await inbox.deliver([event()])
    assert again.verdict is Verdict.DUPLICATE  # it had been accepted after all, once


async def test_what_waits_is_bounded_and_nothing_of_a_refused_delivery_is_stored(
    lite: Storage, make_inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "MAX_WAITING", 10)
    wire = Wire(lite)
    wire.open.clear()
    inbox = make_inbox(wire)
    first = asyncio.create_task(inbox.deliver([event("in-flight")]))
    await wire.waiting.wait()
    second = asyncio.create_task(inbox.deliver(many(9)))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await inbox.deliver(many(2, prefix="refused"))
    third = asyncio.create_task(inbox.deliver([event("fits")]))
    await asyncio.sleep(0)
    wire.open.set()
    await asyncio.gather(first, second, third)
    await inbox.deliver([event("later")])
    assert [name for name in await stored(lite) if not name.startswith("a-")] == [
        "in-flight",
        "fits",
        "later",
    ]


async def test_waiting_bytes_are_bounded(
    lite: Storage, make_inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "MAX_WAITING_BYTES", 10_000)
    wire = Wire(lite)
    wire.open.clear()
    inbox = make_inbox(wire)
    first = asyncio.create_task(inbox.deliver([event("in-flight")]))
    await wire.waiting.wait()
    second = asyncio.create_task(inbox.deliver([event("a", data=b'"' + b"x" * 8_000 + b'"')]))
    await asyncio.sleep(0)
    for large in (event("b", data=b'"' + b"x" * 8_000 + b'"'), event("c", subject="x" * 8_000)):
        with pytest.raises(OverloadedError):
            await inbox.deliver([large])
    wire.open.set()
    await asyncio.gather(first, second)


# ---------------------------------------------------------------------------------------------- the routing moves


async def test_a_batch_is_bound_again_when_the_routing_has_changed_meanwhile(
    store: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(store)
    inbox = make_inbox(wire)
    await inbox.deliver([event("before")])
    wire.before = lambda: store.declare_triggers([Trigger("shop", "fulfil", "order.*")])
    [result] = await inbox.deliver([event("after")])
    assert (result.verdict, result.starts) == (Verdict.ACCEPTED, 1)
    assert len(wire.sent) == 3
    assert (await store.counts())["instances"] == 1


async def test_ten_inboxes_on_one_database_accept_each_event_once(
    store: Storage, make_inbox: MakeInbox
) -> None:
    inboxes = [make_inbox(store) for _ in range(10)]
    results = await asyncio.gather(*(inbox.deliver(many(30)) for inbox in inboxes))
    verdicts = [result.verdict for delivered in results for result in delivered]
    assert verdicts.count(Verdict.UNMATCHED) == 30
    assert verdicts.count(Verdict.DUPLICATE) == 270
    assert len(await eventually(lambda: stored(store))) == 30
