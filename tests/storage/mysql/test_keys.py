"""Keys are compared byte by byte, whatever a text collation would take for the same."""

import pytest

from edda.storage.mysql.store import MySQLStore
from edda.storage.rows import Applied, NewInstance, Trigger
from tests.storage.mysql import on

#: For MySQL's default collation all of these are one word.
ALIKE = ["a1", "A1", "á1", "a1 ", "a1\t", "\uff411"]


async def test_instances_whose_ids_differ_in_case_accent_or_blank_are_distinct(store: MySQLStore) -> None:
    results = (await store.flush([on.start(one) for one in ALIKE])).results
    assert [result.applied for result in results] == [Applied.APPLIED] * len(ALIKE)
    for one in ALIKE:
        found = await store.get_instance(one)
        assert found is not None
        assert found.id == one
        assert list(await store.load([one])) == [one]


async def test_a_claim_takes_neither_anothers_app_nor_anothers_workflow(store: MySQLStore) -> None:
    for app in ALIKE:
        await store.register_worker(f"of {app}", app, 60_000_000)
        await store.insert_instances(
            [NewInstance(f"{app} {name}", app, name, b"{}") for name in ALIKE],
        )
    for app in ALIKE:
        claimed = await store.claim(app, ["a1 "], f"of {app}", 100)
        assert [one.id for one in claimed] == [f"{app} a1 "]


async def test_shapes_and_triggers_are_distinct(store: MySQLStore) -> None:
    shapes = [await store.register_shape(pattern, ()) for pattern in ALIKE]
    assert len({shape.id for shape in shapes}) == len(ALIKE)
    await store.declare_triggers([Trigger(on.APP, "order", pattern) for pattern in ALIKE])
    assert [trigger.pattern for trigger in (await store.routing()).triggers] == ALIKE


@pytest.mark.parametrize("id", ALIKE)
async def test_an_owner_is_not_taken_for_another(store: MySQLStore, id: str) -> None:
    await store.flush([on.start("order", owner="a1")])
    result = (await store.flush([on.step("order", 2, owner=id)])).results[0]
    assert (result.applied is Applied.APPLIED) == (id == "a1")
