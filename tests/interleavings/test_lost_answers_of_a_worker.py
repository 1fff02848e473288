"""A whole app on a network that loses an answer: at whichever commit, the workflow goes on as if nothing had been."""

import asyncio
import json
from contextlib import suppress

import pytest
import sqlalchemy as sa

from edda.activity import activity
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.storage.contract import Storage
from edda.storage.rows import State
from edda.storage.schema import events, history, instances, outbox, waits
from edda.transactional import send_event_transactional
from edda.waits import sleep, wait_event
from edda.workflow import workflow
from tests.interleavings.barrier import Barrier
from tests.interleavings.conftest import MakeApp
from tests.interleavings.raw import Raw
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)

#: What is to be seen in the database when the answer gets lost.
MOMENTS: dict[str, sa.Executable] = {
    "the start": sa.select(sa.func.count()).select_from(instances),
    "the first activity": sa.select(sa.func.count()).select_from(history),
    "an event out of an activity": sa.select(sa.func.count()).select_from(outbox),
    "two activities at once": sa.select(sa.func.count()).select_from(history).where(history.c.seq >= 2),
    "the wait": sa.select(sa.func.count()).select_from(waits).where(waits.c.kind == "event"),
    "the park": sa.select(sa.func.count()).select_from(instances).where(instances.c.state == "waiting"),
    "the accept": sa.select(sa.func.count()).select_from(events),
    "the claim": sa.select(sa.func.count()).select_from(instances).where(instances.c.fence == 2),
    "the event received": sa.select(sa.func.count()).select_from(history).where(history.c.kind == "event"),
    "the timer": sa.select(sa.func.count()).select_from(waits).where(waits.c.kind == "timer"),
    "the outcome": sa.select(sa.func.count()).select_from(instances).where(instances.c.state == "completed"),
}


@SERVERS
@pytest.mark.parametrize("moment", MOMENTS)
async def test_an_answer_that_is_lost_changes_nothing(
    make_app: MakeApp, store: Storage, raw: Raw, proxy: Proxy, moment: str
) -> None:
    ran: list[str] = []

    @activity
    async def step(ctx: WorkflowContext, name: str) -> str:
        ran.append(name)
        await send_event_transactional(ctx, "stepped", "shop", {"name": name})
        return name

    @workflow
    async def order(ctx: WorkflowContext) -> list[str]:
        first = await step(ctx, "first")
        both = await asyncio.gather(step(ctx, "second"), step(ctx, "third"))
        paid = await wait_event(ctx, "paid")
        await sleep(ctx, 0.01)
        return [first, *both, paid.id, await step(ctx, "last")]

    app = await make_app(order, url=proxy.url)

    async def seen() -> bool:
        return bool(await raw.scalar(MOMENTS[moment]))

    proxy.cut_once(seen)
    handle = await app.submit(order)

    # Looked at by another way than through the proxy: a question whose answer is lost has nothing to resolve.
    async def is_in(state: State) -> bytes | None:
        row = await store.get_instance(handle.id)
        return row.output or b"parked" if row is not None and row.state is state else None

    await eventually(lambda: is_in(State.WAITING), 30)
    [result] = await app.deliver(CloudEvent(id="e", source="bank", type="paid"))
    assert result.seq == 1
    output = await eventually(lambda: is_in(State.COMPLETED), 30)
    assert output is not None
    assert json.loads(output) == ["first", "second", "third", "e", "last"]
    await eventually(lambda: proxy.cuts == 1)
    assert sorted(ran) == ["first", "last", "second", "third"]
    assert await raw.count(outbox) == 4
    assert await raw.count(events) == 1
    assert await raw.count(waits) == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_claim_that_commits_after_its_connection_was_lost_is_run_all_the_same(
    make_app: MakeApp, raw: Raw, proxy: Proxy, barrier: Barrier
) -> None:
    """The server is busy with it when the worker asks what it owns; hearing "nothing" it would never ask again."""

    @workflow
    async def order(ctx: WorkflowContext) -> str:
        return (await wait_event(ctx, "paid")).id

    app = await make_app(order, url=proxy.url)
    handle = await app.submit(order)

    async def state() -> str:
        return str(await raw.scalar(sa.select(instances.c.state)))

    async def parked() -> bool:
        return await state() == "waiting"

    await eventually(parked)
    async with barrier.at(instances, "UPDATE", "NEW.owner IS NOT NULL AND OLD.owner IS NULL", at_commit=True):
        await app.deliver(CloudEvent(id="e", source="bank", type="paid"))
        await eventually(raw.lock_waits)
        proxy.cut_all()

        async def asks_again() -> bool:
            return await raw.lock_waits() == 2

        # It waits for the claim as well, or has heard "nothing" and claims what is left, which is nothing either.
        with suppress(AssertionError):
            await eventually(asks_again, 2)

    async def completed() -> bool:
        return await state() == "completed"

    await eventually(completed, 15)
    assert await handle.result() == "e"
