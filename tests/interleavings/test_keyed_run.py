"""At most one live run per key, and no event of the key is left to a run that has ended."""

import asyncio
from collections import Counter

from edda.storage.contract import Storage
from edda.storage.rows import Applied, NewEvent, Release, State, Turn, Unread, Verdict
from edda.storage.schema import events, instances
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

LIVE = "customer 7"


def opening(name: str) -> NewEvent:
    """An event that a trigger of policy "key" takes: it starts a run, or is for the one that lives."""
    return given.event(name, LIVE, starts=[given.instance(f"run of {name}", live_key=LIVE)])


def ending(instance_id: str, after: int, *, fence: int = 1, received: frozenset[int] = frozenset()) -> Turn:
    turn = given.step(instance_id, 2, fence=fence, release=Release.END)
    turn.unread = Unread(given.digest(LIVE), after, received)
    return turn


async def started(store: Storage) -> int:
    """The first run, owned by "a"; the number of the event that it was started by."""
    await store.accept(given.batch("first", opening("e1")))
    (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
    assert (claimed.id, claimed.live_key) == ("run of e1", given.digest(LIVE))
    return claimed.start_event


async def test_two_events_of_one_key_at_once_start_one_run(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    async with barrier.at(instances, "INSERT"):
        first = await barrier.stopped(store.accept(given.batch("1", opening("e1"))))
        second = await barrier.waiting(other.accept(given.batch("2", opening("e2"))))
    assert (await first).results[0].starts == 1
    (result,) = (await second).results
    assert (result.verdict, result.starts) == (Verdict.ACCEPTED, 0)
    assert await raw.count(instances) == 1


async def test_an_event_that_commits_while_its_run_ends_is_handed_to_it(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """Accept has seen the run alive, and left the event to it."""
    after = await started(store)
    async with barrier.at(events, "INSERT"):
        accepting = await barrier.stopped(other.accept(given.batch("2", opening("e2"))))
        flushing = await barrier.waiting(store.flush([ending("run of e1", after)]))
    assert (await accepting).results[0].starts == 0
    (result,) = (await flushing).results
    assert result.applied is Applied.KEPT
    assert result.unread is not None
    assert result.unread.event_id == "e2"
    # The run ends with a successor for it; the records are written already.
    again = ending("run of e1", after)
    again.records.clear()
    again.successor = given.instance("next", live_key=LIVE)
    assert (await store.flush([again])).results[0].applied is Applied.APPLIED
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
    assert claimed.id == "next"


async def test_an_event_that_waits_while_its_run_ends_starts_the_next(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    after = await started(store)
    async with barrier.at(instances, "UPDATE", "NEW.state = 'completed'"):
        flushing = await barrier.stopped(store.flush([ending("run of e1", after)]))
        accepting = await barrier.waiting(other.accept(given.batch("2", opening("e2"))))
    assert (await flushing).results[0].applied is Applied.APPLIED
    assert (await accepting).results[0].starts == 1
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
    assert claimed.id == "run of e2"


async def test_a_successor_and_an_event_that_both_want_the_key_make_one_run(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    after = await started(store)
    await other.accept(given.batch("2", opening("e2")))
    turn = ending("run of e1", after)
    turn.successor = given.instance("next", live_key=LIVE)
    async with barrier.at(instances, "INSERT", "NEW.id = 'next'"):
        flushing = await barrier.stopped(store.flush([turn]))
        accepting = await barrier.waiting(other.accept(given.batch("3", opening("e3"))))
    assert (await flushing).results[0].applied is Applied.APPLIED
    assert (await accepting).results[0].starts == 0
    live = [row.id for row in await raw.rows(instances.select()) if row.live_key is not None]
    assert live == ["next"]


async def test_every_event_of_a_key_starts_a_run_or_is_handed_to_one_whatever_the_timing(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """A gateway and a worker at full speed: runs that end at once, events that come at that moment."""
    count = 60
    heard: list[int] = []
    delivered = asyncio.Event()

    async def gateway() -> None:
        for number in range(count):
            await other.accept(given.batch(str(number), opening(f"e{number}")))
        delivered.set()

    async def worker() -> None:
        while True:
            last = delivered.is_set()
            claims = await store.claim(given.APP, [given.WORKFLOW], "a", 10)
            for claimed in claims:
                await run(claimed.id, claimed.fence, claimed.start_event)
            if last and not claims:
                return

    async def run(instance_id: str, fence: int, start_event: int) -> None:
        # As the engine does it for a successor: "start_event" of one is the event that it is for.
        heard.append(start_event)
        turn = ending(instance_id, start_event, fence=fence)
        (result,) = (await store.flush([turn])).results
        while result.applied is Applied.KEPT:
            assert result.unread is not None
            heard.append(result.unread.seq)
            received = (turn.unread.received if turn.unread else frozenset()) | {result.unread.seq}
            turn = ending(instance_id, start_event, fence=fence, received=received)
            turn.records.clear()
            (result,) = (await store.flush([turn])).results
        assert result.applied is Applied.APPLIED

    await asyncio.gather(gateway(), worker())
    assert Counter(heard) == Counter(range(1, count + 1))
    assert heard == sorted(heard)
    assert {row.state for row in await raw.rows(instances.select())} == {State.COMPLETED}
