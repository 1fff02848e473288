"""A wait costs a row: no task, no coroutine, next to no memory, and nothing is loaded at a restart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.crash.shop import Shop
from tests.support.processes import Process


async def test_parked_instances_leave_nothing_in_the_process(shop: Shop) -> None:
    await _park(shop, few=50, many=1_000)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_ten_thousand_parked_instances_leave_nothing_in_the_process(shop: Shop) -> None:
    few, many = await _park(shop, few=1_000, many=10_000)
    # Deadlines are kept as numbers. 512 bytes an instance would already be an object that stays.
    assert many["memory"] - few["memory"] < 512 * 9_000, (few, many)


async def _park(shop: Shop, *, few: int, many: int) -> tuple[dict[str, int], dict[str, int]]:
    process = shop.start("parked", few=few, many=many)
    some, all_ = await _census(process, "few"), await _census(process, "many")
    counts = await shop.counts()
    assert counts == {"waiting": many, "outbox": 0}
    # One at most: the last one looked at, by the name that a loop has for it.
    assert max(some["runs"], all_["runs"]) <= 1
    # What the process is doing at that moment may differ; what grows with the instances would be far above this.
    grown = (many - few) // 10
    assert all_["tasks"] < some["tasks"] + grown
    assert all_["coroutines"] < some["coroutines"] + grown
    process.kill()

    again = shop.start("ready_again")
    ready = await _census(again, "ready")
    assert (ready["loads"], ready["runs"]) == (0, 0)
    woken = await _census(again, "woken")
    assert woken["loads"] >= 1
    assert woken["runs"] <= 1
    assert await shop.counts() == {"waiting": many - 1, "completed": 1, "outbox": 0}
    return some, all_


async def _census(process: Process, word: str) -> dict[str, Any]:
    found = await process.line(rf"^{word} (\{{.*)", timeout=240)
    census: dict[str, Any] = json.loads(found[1])
    return census
