"""Wherever a worker dies, another one finishes its work, and nobody can tell from the result."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.crash import ledger, nursery, workflows
from tests.crash.programs import port_of, start
from tests.support.databases import Database

#: What must happen once, and what it depends on.
STEPS = ("flush", "apply_in_session", "commit", "accept", "outbox_settle")


@pytest.mark.timeout(300)
async def test_worker_killed_at_any_step_of_an_order_loses_and_doubles_nothing(
    database: Database, tmp_path: Path
) -> None:
    only = rf"^({'|'.join(STEPS)}|register_shape|body\.book)\.|^(claim|load|outbox_take)\.[12]\."
    await _play("SIGKILL", database, tmp_path, only=only, steps=STEPS)


@pytest.mark.long
@pytest.mark.endurance
@pytest.mark.timeout(600)
async def test_worker_killed_before_or_after_any_of_its_calls_loses_and_doubles_nothing(
    database: Database, tmp_path: Path
) -> None:
    steps = (
        *STEPS,
        "claim",
        "load",
        "register_shape",
        "register_worker",
        "outbox_take",
        "body.book",
        "body.ship",
    )
    await _play("SIGKILL", database, tmp_path, only="", steps=steps)


# Not on SQLite: whoever is stopped inside a transaction keeps everybody from writing, by the file's own lock.
@pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)
@pytest.mark.long
@pytest.mark.endurance
@pytest.mark.timeout(600)
async def test_worker_stopped_before_or_after_any_of_its_calls_changes_nothing_when_it_awakes(
    database: Database, tmp_path: Path
) -> None:
    await _play("SIGSTOP", database, tmp_path, only=rf"^({'|'.join(STEPS)}|claim|load)\.", steps=STEPS)


async def _play(signal: str, database: Database, tmp_path: Path, *, only: str, steps: Sequence[str]) -> None:
    if database.kind != "sqlite":
        await ledger.create_bookings(database)
    diary = tmp_path / "diary"
    diary.mkdir()
    with start("sink", ledger=str(tmp_path / "sink")) as sink:
        settings = {
            "url": database.url,
            "sink": f"http://127.0.0.1:{port_of(sink)}/",
            "signal": signal,
            "only": only,
        }
        with start("tests.crash.nursery:die_at_every_point", diary=diary, **settings) as process:
            assert await asyncio.to_thread(process.wait, 580) == 0
            output = process.output
    died, missed = _points(output, "died"), _points(output, "missed")
    assert "FAILED" not in output, output
    # The faults have happened: at each step of the order, on both sides of it.
    for what in steps:
        for when in ("before", "after"):
            assert any(point.startswith(f"{what}.") and point.endswith(when) for point in died), output
    assert len(missed) <= len(died) / 5, output

    shops = {nursery.shop_of(point) for point in (nursery.REHEARSAL, *died, *missed)}
    orders = {nursery.order_of(shop): nursery.AMOUNT for shop in shops}
    urls = {nursery.url_of(database.url, shop) for shop in shops}
    books = await ledger.read(urls, tmp_path / "sink")
    assert ledger.faults(books, orders) == [], output
    for shop in shops:
        # A death costs at most one more try of what ran then; it neither adds tries nor forgets those that failed.
        deaths = 1 + output.count(f"worker_declared_dead {{'worker': '{shop}-")
        for name, wanted in workflows.BODIES.items():
            runs = workflows.noted(diary, name, nursery.order_of(shop))
            assert wanted <= runs <= wanted + deaths, (shop, name, runs, output)


def _points(output: str, word: str) -> list[str]:
    return re.findall(rf"^{word} (\S+)$", output, re.MULTILINE)
