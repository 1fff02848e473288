"""Sweeping, in few words."""

import uuid
from dataclasses import replace

from edda.storage.contract import Storage
from edda.storage.rows import Chunk, Expiring, Sweep, Swept
from tests.storage.given import APP, HOUR


async def begun(store: Storage, every_us: int = 0, lease_us: int = HOUR) -> Sweep | None:
    """A sweep of its own."""
    return await store.begin_sweep(f"sweep-{uuid.uuid4().hex}", lease_us, every_us)


async def everything(store: Storage, before: int) -> dict[Expiring, list[Swept]]:
    """Two chunks of each kind, so that the second begins behind the first."""
    sweep = await begun(store)
    assert sweep is not None
    found: dict[Expiring, list[Swept]] = {}
    for what in Expiring:
        chunk = Chunk(what, before, apps=((APP, before),))
        for _ in range(2):
            swept = await store.sweep(sweep, chunk, HOUR)
            assert swept is not None
            found.setdefault(what, []).append(swept)
            chunk = replace(chunk, after=swept.after or (0, ""))
    await store.end_sweep(sweep, 1)
    await store.sweeps()
    return found
