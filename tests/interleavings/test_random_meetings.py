"""Events and waits that meet a thousand times at random: each event is received once, and in order."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from edda.context import WorkflowContext
from edda.storage.contract import Storage
from edda.storage.rows import Applied, Release, State, Turn
from edda.storage.schema import events
from edda.waits import wait_event
from edda.workflow import workflow
from tests.interleavings import given
from tests.interleavings.conftest import MakeApp
from tests.interleavings.deadlocks import Deadlocks
from tests.interleavings.raw import Raw
from tests.support.databases import Database
from tests.support.processes import spawn

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

INSTANCES = 20
EVENTS_EACH = 50


async def dawdle(chance: random.Random, store: Storage) -> None:
    """Be late by a random number of the loop's turns, or of the database's."""
    for _ in range(chance.choice((0, 0, 1, 2, 5))):
        await asyncio.sleep(0)
    if chance.random() < 0.2:
        await store.ping()


@dataclass(slots=True)
class Owner:
    """What an instance's owner does: receive, register the next wait, and park or not, as it happens."""

    store: Storage
    chance: random.Random
    name: str
    seq: int = 1
    cursor: int = 0
    received: list[str] = field(default_factory=list)

    async def go_on(self, fence: int, signals: int) -> None:
        """From a claim (or the start) until it is parked, or has received all."""
        while True:
            loaded = (await self.store.load([self.name], history=False))[self.name]
            signals = loaded.signals
            turn = Turn(self.name, "a", fence, signals)
            for wait in loaded.waits:
                if wait.event is not None:
                    self.received.append(wait.event.event_id)
                    self.cursor = wait.event.seq
                    turn.drop_waits.append(wait.seq)
                elif len(loaded.waits) == 1:
                    turn.release = Release.PARK
            done = len(self.received) == EVENTS_EACH
            if done:
                turn.release, turn.end_state = Release.END, State.COMPLETED
            elif turn.release is not Release.PARK:
                self.seq += 1
                turn.records = [given.record(self.seq)]
                turn.waits = [given.wait(self.seq, self.name, cursor=self.cursor)]
                turn.release = self.chance.choice((Release.PARK, Release.KEEP))
            await dawdle(self.chance, self.store)
            (result,) = (await self.store.flush([turn])).results
            assert result.applied in {Applied.APPLIED, Applied.KEPT}
            if result.applied is Applied.APPLIED and turn.release is not Release.KEEP:
                return


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_events_meet_a_thousand_waits(
    store: Storage, other: Storage, raw: Raw, deadlocks: Deadlocks, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"i{number:02}" for number in range(INSTANCES)]
    owners = {name: Owner(store, chance, name) for name in names}
    await store.flush([given.start(name) for name in names])

    async def gateway(mine: list[str]) -> None:
        left = dict.fromkeys(mine, 0)
        while left:
            # A burst: some of one instance's events, in order, among others'.
            burst = []
            for name in chance.sample(sorted(left), min(len(left), chance.randint(1, 3))):
                for _ in range(chance.randint(1, 3)):
                    if name in left:
                        burst.append(given.event(f"{name}-{left[name]}", name))
                        left[name] += 1
                        if left[name] == EVENTS_EACH:
                            del left[name]
            await dawdle(chance, other)
            await other.accept(given.batch(f"{chance.random()}", *burst))

    async def worker() -> None:
        async with asyncio.TaskGroup() as group:
            for owner in owners.values():
                group.create_task(owner.go_on(1, 0))
            while any(len(owner.received) < EVENTS_EACH for owner in owners.values()):
                for claimed in await store.claim(given.APP, [given.WORKFLOW], "a", 5):
                    group.create_task(owners[claimed.id].go_on(claimed.fence, claimed.signals))

    await asyncio.gather(worker(), gateway(names[::2]), gateway(names[1::2]))
    for name, owner in owners.items():
        assert owner.received == [f"{name}-{number}" for number in range(EVENTS_EACH)]
    assert await raw.count(events) == INSTANCES * EVENTS_EACH
    assert await deadlocks.count(store, other) == 0


DEVICES = 8


@workflow
async def collect_readings(ctx: WorkflowContext, device: int, count: int) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < count:
        event = await wait_event(ctx, "reading", match={"data.device": device})
        numbers.append(event.data["number"])
    return numbers


@workflow
async def collect_all(ctx: WorkflowContext, count: int) -> list[str]:
    return [(await wait_event(ctx, "reading")).id for _ in range(count)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_bursts_from_another_process_between_consecutive_waits_are_received_once_and_in_order(
    make_app: MakeApp, database: Database, raw: Raw, seed: int
) -> None:
    """By instances that wait in a loop for their own events, and by one that waits for everybody's."""
    each = 60
    app = await make_app(collect_readings, collect_all, lease_seconds=6)
    handles = [await app.submit(collect_readings, device=device, count=each) for device in range(DEVICES)]
    everything = await app.submit(collect_all, count=DEVICES * each)
    arguments = (database.url, str(seed), str(DEVICES), str(each))
    with spawn("tests.interleavings.programs:deliver_readings", *arguments) as gateway:
        await gateway.line("^delivered$", 300)
    for handle in handles:
        assert await handle.result(timeout=200) == list(range(each))
    accepted = [row.event_id for row in await raw.rows(events.select().order_by(events.c.seq))]
    assert await everything.result(timeout=200) == accepted


async def test_bursts_are_received_once_and_in_order_by_whichever_of_two_workers_has_the_instance(
    make_app: MakeApp, database: Database
) -> None:
    """Two apps of one name share the instances; each park may hand one over to the other."""
    each = 40
    first = await make_app(collect_readings, lease_seconds=6)
    second = await make_app(collect_readings, lease_seconds=6)
    handles = [
        await (first, second)[device % 2].submit(collect_readings, device=device, count=each)
        for device in range(DEVICES)
    ]
    arguments = (database.url, "3", str(DEVICES), str(each))
    with spawn("tests.interleavings.programs:deliver_readings", *arguments) as gateway:
        await gateway.line("^delivered$", 300)
    for handle in handles:
        assert await handle.result(timeout=200) == list(range(each))
