"""A shape that is registered while events come in finds every one of them, those before and those after."""

from __future__ import annotations

import asyncio

import pytest

from edda.errors import StorageUnavailableError
from edda.inbox import registry
from edda.inbox.registry import Shapes
from edda.inbox.shapes import shape_hash
from edda.storage.contract import Storage
from tests.inbox.conftest import MakeInbox
from tests.inbox.given import event, keys

PATHS = ("data.customer",)


def order(number: int) -> tuple[str, bytes]:
    return f"a-{number}", b'{"customer": %d}' % (number % 3)


def hashes(pattern: str = "order.created") -> list[bytes]:
    return [shape_hash(pattern, {"data.customer": customer}) for customer in range(3)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks where one would do."""
    monkeypatch.setattr(registry, "_CHUNK", 7)


async def test_a_shape_finds_the_events_that_were_there_before(
    store: Storage, make_inbox: MakeInbox, small_chunks: None
) -> None:
    inbox = make_inbox(store)
    await inbox.deliver([event(name, data=data) for name, data in map(order, range(30))])
    await inbox.deliver([event("other", type="order.paid", data=b'{"customer": 0}')])
    shape = await Shapes(store).ensure("order.created", PATHS)
    assert await keys(store) == {(hashes()[number % 3], number + 1) for number in range(30)}
    [known] = (await store.routing()).shapes
    assert known.ready
    assert known.id == shape.id


async def test_a_shape_registered_while_accepts_run_finds_every_event(
    store: Storage, make_inbox: MakeInbox, small_chunks: None
) -> None:
    inboxes = [make_inbox(store) for _ in range(3)]
    total = 120

    async def send(inbox_number: int) -> None:
        for number in range(inbox_number, total, 3):
            name, data = order(number)
            await inboxes[inbox_number].deliver([event(name, data=data)])

    async def register(pattern: str) -> None:
        await Shapes(store).ensure(pattern, PATHS)

    patterns = ["order.created", "order.*", "*"]
    await asyncio.gather(*(send(number) for number in range(3)), *(register(pattern) for pattern in patterns))

    rows = await store.events_of_pattern("*", 0, 10_000, 10_000)
    assert len(rows) == total
    expected = {(hashes(pattern)[int(row.event_id[2:]) % 3], row.seq) for row in rows for pattern in patterns}
    assert await keys(store) == expected
    assert all(shape.ready for shape in (await store.routing()).shapes)


async def test_ten_processes_may_register_one_shape(
    store: Storage, make_inbox: MakeInbox, small_chunks: None
) -> None:
    await make_inbox(store).deliver([event(name, data=data) for name, data in map(order, range(30))])
    shapes = await asyncio.gather(*(Shapes(store).ensure("order.created", PATHS) for _ in range(10)))
    assert len({shape.id for shape in shapes}) == 1
    assert len(await keys(store)) == 30


async def test_a_registration_that_broke_off_is_finished_by_whoever_comes_next(
    store: Storage, make_inbox: MakeInbox, small_chunks: None
) -> None:
    inbox = make_inbox(store)
    await inbox.deliver([event(name, data=data) for name, data in map(order, range(20))])
    await store.register_shape("order.created", PATHS)  # and then the process dies
    await inbox.deliver([event(name, data=data) for name, data in map(order, range(20, 25))])
    await Shapes(store).ensure("order.created", PATHS)
    assert await keys(store) == {(hashes()[number % 3], number + 1) for number in range(25)}


async def test_events_that_lack_the_path_are_not_found(store: Storage, make_inbox: MakeInbox) -> None:
    await make_inbox(store).deliver(
        [event("a", data=b"{}"), event("b", data=b"not json"), event("c", data=None)]
    )
    await Shapes(store).ensure("order.created", PATHS)
    assert await keys(store) == set()


async def test_a_shape_is_cached_only_when_it_is_registered(lite: Storage) -> None:
    shapes = Shapes(lite)
    assert shapes.cached("order.created", PATHS) is None
    shape = await shapes.ensure("order.created", PATHS)
    assert shapes.cached("order.created", PATHS) == shape
    assert shapes.cached("order.created", ()) is None


async def test_a_shape_is_not_cached_when_its_backfill_failed(
    lite: Storage, make_inbox: MakeInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_inbox(lite).deliver([event()])
    shapes = Shapes(lite)

    async def away(*_: object) -> frozenset[str]:
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(lite, "backfill", away)
        with pytest.raises(StorageUnavailableError):
            await shapes.ensure("order.created", PATHS)
    assert shapes.cached("order.created", PATHS) is None
    await shapes.ensure("order.created", PATHS)
    assert [shape.ready for shape in (await lite.routing()).shapes] == [True]
