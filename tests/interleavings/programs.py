"""What runs in processes of their own. Each speaks in lines; the test that starts it stops or kills it at one."""

import asyncio
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from edda.cloudevent import CloudEvent
from edda.errors import StorageUnavailableError
from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.mysql import store as mysql
from edda.storage.rows import Chunk, Expiring, Turn
from tests.interleavings import given

T = TypeVar("T")


async def _open(url: str, lease_us: int = given.LEASE_US) -> Storage:
    # MySQL drops an idle connection after half a lease, but not before 10 s; a test need not wait for that long.
    mysql.MIN_WAIT_TIMEOUT = 1  # type: ignore[attr-defined]
    store = open_store(url)
    await store.open(lease_us)
    return store


async def _until_known(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except StorageUnavailableError:
            print("unknown", flush=True)


async def claim_everything(url: str, worker: str, size: str) -> None:
    """Claims by ``size`` until nothing is left, as one of several that do."""
    store = await _open(url)
    await store.register_worker(worker, given.APP, given.LEASE_US)
    print("ready", flush=True)
    while not await store.find_instances(id_contains="go"):
        pass
    while claimed := await store.claim(given.APP, [given.WORKFLOW], worker, int(size)):
        print("claimed", *(f"{one.id}:{one.fence}" for one in claimed), flush=True)
    print("done", flush=True)
    await store.close()


async def accept(url: str, event_id: str, *keys: str) -> None:
    """Accepts one event, as often as it takes to know what became of it."""
    store = await _open(url, 2_000_000)
    batch = given.batch(f"of {event_id}", given.event(event_id, *keys))
    print("accepting", flush=True)
    (result,) = (await _until_known(lambda: store.accept(batch))).results
    print("accepted", result.verdict.value, result.seq, flush=True)
    await store.close()


async def accept_and_die(url: str, event_id: str, *keys: str) -> None:
    """Accepts one event, and then comes to nothing more until it is killed."""
    store = await _open(url)
    (result,) = (await store.accept(given.batch(f"of {event_id}", given.event(event_id, *keys)))).results
    print("accepted", result.verdict.value, result.seq, flush=True)
    await asyncio.Event().wait()


async def flush(url: str, owner: str, instance_id: str) -> None:
    """Writes one turn (and starts a child of its own, owned), as often as it takes to know what became of it."""
    store = await _open(url, 2_000_000)
    turns: list[Turn] = [given.step(instance_id, 2, owner=owner), given.start("zzz", owner=owner)]
    print("flushing", flush=True)
    results = (await _until_known(lambda: store.flush(turns))).results
    print("flushed", *(result.applied.name for result in results), flush=True)
    again = (await store.flush([given.step(instance_id, 3, owner=owner)])).results
    print("and then", again[0].applied.name, flush=True)
    await store.close()


async def hold_the_writer(url: str) -> None:
    """A transaction of the user's that is open, and stays so."""
    store = await _open(url)
    async with store.engine().begin() as connection:
        turn = given.step("order", 2)
        assert (await store.apply_in_session(connection, turn)).applied.name == "APPLIED"
        print("holding", flush=True)
        await asyncio.Event().wait()


async def deliver_readings(url: str, seed: str, devices: str, each: str) -> None:
    """A gateway: readings of all devices, each device's in order, in bursts at random."""
    store = await _open(url)
    inbox = Inbox(store)
    chance = random.Random(int(seed))
    left = dict.fromkeys(range(int(devices)), 0)
    while left:
        burst = []
        for device in chance.sample(sorted(left), min(len(left), chance.randint(1, 4))):
            for _ in range(chance.randint(1, 5)):
                if device in left:
                    number = left[device]
                    data = json.dumps({"device": device, "number": number}).encode()
                    burst.append(CloudEvent(f"{device}-{number}", "sensors", "reading", data))
                    left[device] += 1
                    if left[device] == int(each):
                        del left[device]
        await inbox.deliver(burst)
        for _ in range(chance.choice((0, 0, 1, 20))):
            await store.ping()
    print("delivered", flush=True)
    await inbox.close()
    await store.close()


async def take_and_freeze_while_preparing(url: str, relay: str) -> None:
    """Takes the outbox, and stops itself when the server has parsed the statement after the lease's lock."""
    prepare, prepared = asyncpg.Connection.prepare, []

    async def freezing(self: Any, *args: Any, **kwargs: Any) -> Any:
        statement = await prepare(self, *args, **kwargs)
        prepared.append(args[0])
        if any("FOR NO KEY UPDATE" in text for text in prepared[:-1]):
            print("frozen", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return statement

    asyncpg.Connection.prepare = freezing  # type: ignore[method-assign]  # in this process only
    store = await _open(url, 2_000_000)
    try:
        await store.outbox_take("default", relay, 1_000_000, 100, 1 << 20)
    except StorageUnavailableError as error:
        print("refused", error, flush=True)


async def sweep_instances(url: str, offset_us: str) -> None:
    """Begins a sweep and removes finished instances, at a time that is so much later."""
    store = await _open(url)
    store.clock_offset_us = int(offset_us)
    sweep = await store.begin_sweep("killed", 3_600_000_000, 0)
    before = await store.now() - 7 * 86_400_000_000
    print("sweeping", flush=True)
    print("swept", await store.sweep(sweep, Chunk(Expiring.INSTANCES, 0, apps=((given.APP, before),)), 1))
