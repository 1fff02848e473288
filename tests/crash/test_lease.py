"""The lease is kept while the process works, whatever its code and its database do, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa

from edda.app import EddaApp
from edda.storage.connect import open_store
from edda.storage.contract import Heart, Storage
from edda.storage.rows import Beat
from edda.storage.schema import workers
from tests.crash import workflows
from tests.crash.shop import Shop
from tests.support.databases import Database
from tests.support.eventually import eventually


async def test_code_that_blocks_the_loop_past_the_lease_keeps_its_instance(shop: Shop) -> None:
    first = await shop.start_ready("blocker", orders=["slow/1"], seconds=5, max_loop_block=60)
    await first.line("blocks slow/1")
    second = await shop.start_ready("blocker", orders=[], seconds=0, max_loop_block=60)

    await shop.all_done(1)
    assert workflows.noted(shop.diary, "block", "slow/1") == 1
    assert "worker_declared_dead" not in first.output
    assert "instances_requeued" not in second.output


async def test_loop_that_never_turns_again_loses_its_lease(shop: Shop) -> None:
    first = await shop.start_ready("blocker", orders=["slow/1"], seconds=600, max_loop_block=1)
    await first.line("blocks slow/1")
    await first.line("event_loop_blocked")

    second = await shop.start_ready("blocker", orders=[], seconds=600, max_loop_block=1)
    await second.line("blocks slow/1", timeout=30)


async def test_lease_survives_any_error_of_a_renewal(shop: Shop) -> None:
    app = EddaApp("lease", shop.url, workflows=[workflows.small], lease_seconds=2)
    app.store = _FlakyHearts(app.store)
    async with app:
        owner = app.worker.owner

        async def is_renewed() -> bool:
            row = sa.select(workers.c.expires_at - workers.c.started_at).where(workers.c.id == owner)
            [(lease,)] = await shop.select(row)
            return bool(lease > 4_000_000)

        await eventually(is_renewed, timeout=20, pause=0.1)
        assert app.worker.owner == owner
        handle = await app.submit(workflows.small)
        assert await handle.result(timeout=20) == "done"


class _FlakyHearts:
    """A store whose hearts fail twice with what nobody has foreseen."""

    def __init__(self, store: Storage) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def heart(self) -> Heart:
        return _FlakyHeart(self._store.heart())


class _FlakyHeart:
    def __init__(self, heart: Heart) -> None:
        self._heart = heart
        self._beats = 0

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        self._beats += 1
        if self._beats in {2, 3}:
            raise RuntimeError("a driver's own")
        return await self._heart.beat(worker, app, lease_us)

    async def close(self) -> None:
        await self._heart.close()


async def test_renewals_and_declarations_of_death_do_not_deadlock(database: Database) -> None:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    renewing = 6

    async def beat(name: str) -> None:
        nonlocal renewing
        heart = store.heart()
        try:
            for number in range(15):
                # Its lease is over as soon as it has it; declared dead, it comes back under another name.
                worker = f"{name}-{number}"
                await store.register_worker(worker, "app", 1)
                for _ in range(3):
                    await heart.beat(worker, "app", 1)
        finally:
            renewing -= 1
            await heart.close()

    async def bury() -> None:
        while renewing:
            await store.requeue_expired()

    try:
        # A renewal that is refused raises, and so ends the test.
        await asyncio.gather(*(beat(f"w{number}") for number in range(6)), bury(), bury())
    finally:
        await store.close()
