"""One event wakes every wait for it, however many: the first thousand in its transaction, the rest right behind."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from edda.errors import StorageUnavailableError
from edda.inbox.registry import Shapes
from edda.inbox.shapes import shape_hash
from edda.storage.contract import Storage
from edda.storage.rows import NewInstance, NewWait, Release, Shape, Turn, Verdict, WaitKind
from edda.storage.schema import instances, waits
from tests.inbox.conftest import MakeInbox
from tests.inbox.given import event

WAITING = 1_150


async def park(store: Storage, shape: Shape, count: int) -> None:
    """So many instances that wait for one kind of event."""
    await store.register_worker("w", "shop", 600_000_000)
    wait = NewWait(1, WaitKind.EVENT, "order.created", shape_hash("order.created", {}), shape.id)
    turns = [
        Turn(
            f"i-{number}",
            "w",
            1,
            0,
            start=NewInstance(f"i-{number}", "shop", "fulfil", b"{}", owner="w"),
            waits=[wait],
            release=Release.PARK,
        )
        for number in range(count)
    ]
    for at in range(0, count, 50):
        await store.flush(turns[at : at + 50])


async def states(store: Storage) -> dict[str, int]:
    async with store.engine().connect() as connection:
        due = await connection.execute(sa.select(sa.func.count()).where(waits.c.due))
        woken = await connection.execute(sa.select(sa.func.count()).where(instances.c.state == "runnable"))
        return {"due": due.scalar_one(), "runnable": woken.scalar_one()}


async def test_an_event_wakes_more_waits_than_one_transaction_marks(
    store: Storage, make_inbox: MakeInbox
) -> None:
    await park(store, await Shapes(store).ensure("order.created", ()), WAITING)
    woken: list[frozenset[str]] = []
    inbox = make_inbox(store, on_woken=woken.append)
    [result] = await inbox.deliver([event()])
    assert result.verdict is Verdict.ACCEPTED
    assert result.waits == 1_000
    await inbox.close()
    assert await states(store) == {"due": WAITING, "runnable": WAITING}
    assert (await store.counts())["unmarked"] == 0
    assert woken == [frozenset({"shop"})] * 2


async def test_the_rest_is_marked_though_the_database_is_away_for_a_moment(
    lite: Storage, make_inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await park(lite, await Shapes(lite).ensure("order.created", ()), WAITING)
    real = lite.mark_due
    failures = [StorageUnavailableError("away")] * 2

    async def mark_due(*arguments: object) -> object:
        if failures:
            raise failures.pop()
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lite, "mark_due", mark_due)
    inbox = make_inbox(lite)
    await inbox.deliver([event()])
    await inbox.close()
    assert (await states(lite))["due"] == WAITING


async def test_close_gives_up_marking_when_the_database_stays_away_and_leaves_it_to_others(
    lite: Storage, make_inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await park(lite, await Shapes(lite).ensure("order.created", ()), WAITING)

    async def mark_due(*_: object) -> object:
        raise StorageUnavailableError("away")

    monkeypatch.setattr(lite, "mark_due", mark_due)
    inbox = make_inbox(lite, patience=0.1)
    await inbox.deliver([event()])
    await asyncio.wait_for(inbox.close(), 5)
    assert (await lite.counts())["unmarked"] == 1
