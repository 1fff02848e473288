"""Publishing from plain code, in the user's own session: the event leaves if, and only if, that commits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from edda.errors import ConfigurationError
from edda.outbox import enqueue, outlets
from edda.storage.contract import Storage
from tests.outbox.given import open_with_orders, order_ids, orders, pending
from tests.support.databases import Database


class Rollback(Exception):  # noqa: N818  # it is no error
    """Raised to roll back."""


@pytest.fixture(params=["sqlite", "mysql", "mariadb"])
async def sync(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Storage, sa.Engine]]:
    """A store, and a sync engine on its database, as Flask or Celery code has one.

    No sync driver of PostgreSQL is among the dependencies; there ``AsyncSession.run_sync`` stands for it.
    """
    database: Database = request.getfixturevalue(f"{request.param}_database")
    async with open_with_orders(database) as store:
        url = sa.make_url(database.url)
        engine = sa.create_engine(url if database.kind == "sqlite" else url.set(drivername="mysql+pymysql"))
        yield store, engine
        engine.dispose()


async def test_an_event_leaves_with_what_the_session_commits(store: Storage) -> None:
    async with AsyncSession(store.engine()) as session, session.begin():
        await session.execute(sa.insert(orders).values(id=7))
        event_id = await enqueue.publish(session, "order.created", "/orders", {"id": 7}, key=7, subject="s")
        assert await order_ids_apart(store) == []
    [row] = await pending(store)
    assert (row.event_id, row.type, row.source, row.data) == (
        event_id,
        "order.created",
        "/orders",
        b'{"id":7}',
    )
    assert (row.destination, row.ordering_key, row.state) == ("default", "7", "pending")
    assert await order_ids(store) == [7]


async def order_ids_apart(store: Storage) -> list[int]:
    """What others see; on SQLite nobody can look while the session writes."""
    return [] if store.session_holds_writer else await order_ids(store)


async def test_a_rollback_takes_the_event_with_it(store: Storage) -> None:
    with contextlib.suppress(Rollback):
        async with AsyncSession(store.engine()) as session, session.begin():
            await session.execute(sa.insert(orders).values(id=7))
            await enqueue.publish(session, "order.created", "/orders", {"id": 7})
            raise Rollback
    assert await pending(store) == []
    assert await order_ids(store) == []


async def test_a_session_that_is_never_committed_publishes_nothing(store: Storage) -> None:
    async with AsyncSession(store.engine()) as session:
        await enqueue.publish(session, "order.created", "/orders", {})
    assert await pending(store) == []


async def test_a_savepoint_that_is_rolled_back_takes_its_event_with_it(store: Storage) -> None:
    async with AsyncSession(store.engine()) as session, session.begin():
        await enqueue.publish(session, "a", "/orders", {})
        with contextlib.suppress(Rollback):
            async with session.begin_nested():
                await enqueue.publish(session, "b", "/orders", {})
                raise Rollback
        async with session.begin_nested():
            await enqueue.publish(session, "c", "/orders", {})
    assert [row.type for row in await pending(store)] == ["a", "c"]


async def test_events_of_one_session_keep_their_order(store: Storage) -> None:
    async with AsyncSession(store.engine()) as session, session.begin():
        for number in range(20):
            await enqueue.publish(session, f"e{number}", "/orders", None, key="k")
    assert [row.type for row in await pending(store)] == [f"e{number}" for number in range(20)]


async def test_a_sync_session_publishes_with_its_commit(sync: tuple[Storage, sa.Engine]) -> None:
    store, sync_engine = sync

    def work() -> str:
        with Session(sync_engine) as session, session.begin():
            session.execute(sa.insert(orders).values(id=7))
            return enqueue.publish_sync(session, "order.created", "/orders", {"id": 7}, key="k")

    def roll_back() -> None:
        with Session(sync_engine) as session, session.begin():
            enqueue.publish_sync(session, "order.lost", "/orders", {})
            raise Rollback

    event_id = await asyncio.to_thread(work)
    with pytest.raises(Rollback):
        await asyncio.to_thread(roll_back)
    assert [(row.event_id, row.type) for row in await pending(store)] == [(event_id, "order.created")]
    assert await order_ids(store) == [7]


async def test_sync_code_inside_an_async_session_publishes_too(store: Storage) -> None:
    async with AsyncSession(store.engine()) as session, session.begin():
        await session.run_sync(lambda inside: enqueue.publish_sync(inside, "order.created", "/orders", {}))
    assert [row.type for row in await pending(store)] == ["order.created"]


async def test_scoped_sessions_publish_as_well(store: Storage) -> None:
    scoped = async_scoped_session(async_sessionmaker(store.engine()), asyncio.current_task)
    async with scoped() as session, session.begin():
        await enqueue.publish(scoped, "a", "/orders", {})
    await scoped.remove()
    assert [row.type for row in await pending(store)] == ["a"]


async def test_a_scoped_sync_session_publishes_as_well(sync: tuple[Storage, sa.Engine]) -> None:
    store, sync_engine = sync

    def work() -> None:
        scoped = scoped_session(sessionmaker(sync_engine))
        enqueue.publish_sync(scoped, "a", "/orders", {})
        scoped.commit()
        scoped.remove()

    await asyncio.to_thread(work)
    assert [row.type for row in await pending(store)] == ["a"]


async def test_an_event_that_is_refused_leaves_the_session_usable(store: Storage) -> None:
    async with AsyncSession(store.engine()) as session, session.begin():
        await session.execute(sa.insert(orders).values(id=7))
        with pytest.raises(ValueError, match="NaN"):
            await enqueue.publish(session, "order.created", "/orders", {"n": float("nan")})
    assert await order_ids(store) == [7]
    assert await pending(store) == []


# ---------------------------------------------------------------------------------------------- where it goes


class App:
    """An open app, as far as its outbox goes."""

    def __init__(self, name: str, *destinations: str) -> None:
        self.service_name = name
        self.told = 0
        self._destinations = list(destinations)

    def destinations(self, event_type: str) -> list[str]:
        return self._destinations

    def outbox_news(self) -> None:
        self.told += 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[outlets.Outlet]:
    """No app but those that the test opens."""
    apps: list[outlets.Outlet] = []
    monkeypatch.setattr(outlets, "outlets", apps)
    return apps


async def destinations(store: Storage) -> list[str]:
    return [row.destination for row in await pending(store)]


async def test_with_one_app_open_its_routes_hold(store: Storage, opened: list[outlets.Outlet]) -> None:
    opened.append(App("shop", "kafka", "bank"))
    async with AsyncSession(store.engine()) as session, session.begin():
        await enqueue.publish(session, "order.created", "/orders", {})
    rows = await pending(store)
    assert sorted(row.destination for row in rows) == ["bank", "kafka"]
    assert len({row.event_id for row in rows}) == 1  # one event, twice on its way


async def test_several_apps_that_agree_are_as_one(store: Storage, opened: list[outlets.Outlet]) -> None:
    opened += [App("shop", "a", "b"), App("books", "b", "a")]
    async with AsyncSession(store.engine()) as session, session.begin():
        await enqueue.publish(session, "order.created", "/orders", {})
    assert sorted(await destinations(store)) == ["a", "b"]


async def test_apps_that_do_not_agree_are_named_and_the_destination_must_be_said(
    store: Storage, opened: list[outlets.Outlet]
) -> None:
    opened += [App("shop", "kafka"), App("books", "bank")]
    async with AsyncSession(store.engine()) as session, session.begin():
        with pytest.raises(ConfigurationError, match=r"'books' sends it to bank; 'shop' sends it to kafka"):
            await enqueue.publish(session, "order.created", "/orders", {})
        await enqueue.publish(session, "order.created", "/orders", {}, destination="kafka")
    assert await destinations(store) == ["kafka"]


async def test_relays_are_told_when_the_outermost_transaction_has_ended(
    store: Storage, opened: list[outlets.Outlet]
) -> None:
    app = App("shop", "default")
    opened.append(app)
    async with AsyncSession(store.engine()) as session:
        for turn in (1, 2):
            async with session.begin():
                async with session.begin_nested():
                    await enqueue.publish(session, "a", "/orders", {})
                await enqueue.publish(session, "b", "/orders", {})
                assert app.told == turn - 1
            assert app.told == turn
    assert len(await pending(store)) == 4


class Route:
    """A relay's publisher, as far as routing goes."""

    def __init__(self, destination: str, *types: str) -> None:
        self.destination = destination
        self._types = types

    def takes(self, event_type: str) -> bool:
        return event_type in self._types


def test_an_event_goes_to_every_route_that_takes_it_and_never_to_one_that_does_not() -> None:
    routes = [Route("default", "invoice.sent"), Route("bank", "invoice.sent", "paid")]
    assert outlets.routed(routes, "invoice.sent") == ["default", "bank"]
    assert outlets.routed(routes, "paid") == ["bank"]
    assert outlets.routed(routes, "order.created") == [
        "unrouted"
    ]  # and not: "default", which does not take it
    assert outlets.routed([], "order.created") == ["default"]  # a relay in another process
