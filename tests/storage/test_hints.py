"""Hints: other processes hear what was committed, where the database can tell them."""

from edda.storage.contract import Storage
from tests.storage.conftest import OpenStore
from tests.support.eventually import eventually


async def test_a_hint_reaches_another_process_or_nobody_says_it_can(
    store: Storage, another_store: OpenStore
) -> None:
    other = await another_store()
    heard: list[str] = []
    async with store.listen(heard.append):
        if not store.has_hints:
            await other.notify(["run:shop", "outbox"])
            assert heard == []
            return

        async def told() -> bool:
            await other.notify(["run:shop", "outbox"])
            return {"run:shop", "outbox"} <= set(heard)

        await eventually(told)
    before = len(heard)
    await other.notify(["run:shop"])
    await other.ping()
    assert len(heard) == before, "nobody listens any more"


async def test_no_hints_are_no_statement(store: Storage) -> None:
    await store.ping()
    before = store.statements
    await store.notify([])
    assert store.statements == before
