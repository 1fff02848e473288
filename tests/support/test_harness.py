"""The harness itself: databases are real and one's own, waiting ends, processes obey."""

import signal
import sys

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.databases import Database, temporary_database
from tests.support.eventually import eventually
from tests.support.processes import spawn

pytestmark = pytest.mark.empty_database

_seen: set[str] = set()


async def test_a_database_answers_and_is_of_its_kind(database: Database) -> None:
    engine = create_async_engine(database.driver_url)
    version = "sqlite_version()" if database.kind == "sqlite" else "version()"
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT 1"))).scalar_one() == 1
        text = str((await connection.execute(sa.text(f"SELECT {version}"))).scalar_one())
    await engine.dispose()
    assert ("MariaDB" in text) == (database.kind == "mariadb")
    assert ("PostgreSQL" in text) == (database.kind == "postgresql")


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_gets_an_empty_database_of_its_own(database: Database, turn: int) -> None:
    assert database.url not in _seen
    _seen.add(database.url)
    engine = create_async_engine(database.driver_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE only_here (id INTEGER)"))
    await engine.dispose()


async def test_a_database_is_dropped_while_somebody_holds_a_transaction_open(
    database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = create_async_engine(database.driver_url)
    with temporary_database(database.kind, tmp_path_factory.mktemp("other")) as other:
        held = create_async_engine(other.driver_url)
        connection = await held.connect()
        await connection.execute(sa.text("CREATE TABLE held (id INTEGER)"))
        await connection.execute(sa.text("INSERT INTO held VALUES (1)"))
    await connection.invalidate()
    await held.dispose()
    await engine.dispose()


async def test_eventually_returns_what_came_true() -> None:
    calls = iter([0, 0, 7])
    assert await eventually(lambda: next(calls)) == 7


async def test_eventually_retries_a_failed_assertion_and_says_the_last_one() -> None:
    def never() -> bool:
        assert sys.maxsize == 0, "the sky fell"
        return True

    with pytest.raises(AssertionError, match="the sky fell"):
        await eventually(never, timeout=0.05)


async def test_a_process_speaks_freezes_and_dies() -> None:
    with spawn("tests.support.test_harness:count_for_ever", "tick") as process:
        await process.line("^tick 3$")
        process.pause()
        process.resume()
        await process.line(r"^tick \d+$")
        process.kill()
        assert process.returncode == -9


async def test_a_process_that_ends_without_the_line_fails_at_once_with_its_output() -> None:
    with (
        spawn("tests.support.test_harness:greet", env={"EDDA_TEST_GREETING": "hello"}) as process,
        pytest.raises(AssertionError, match=r"ended without.*\n(.*\n)*hello"),
    ):
        await process.line("goodbye")


@pytest.mark.parametrize("what", ["pause", "resume", "must_live"])
async def test_a_process_that_has_ended_by_itself_is_told_with_its_output_when_a_signal_is_due(
    what: str,
) -> None:
    with spawn("tests.support.test_harness:give_up") as process:
        assert process.wait() == 3
        with pytest.raises(AssertionError, match=r"ended with 3(.*\n)*out of paper"):
            getattr(process, what)()


@pytest.mark.timeout(200)
async def test_a_killed_test_run_leaves_no_process_not_even_a_frozen_one() -> None:
    with spawn("tests.support.test_harness:start_and_freeze_another") as starter:
        pid = int((await starter.line(r"^frozen (\d+)$", timeout=120))[1])
        assert is_alive(pid)
        starter.kill()
        await eventually(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_and_freeze_another() -> None:
    process = spawn("tests.support.test_harness:count_for_ever", "tick")
    process.wait_for_line("tick 3", timeout=100)
    process.pause()
    print("frozen", process.pid, flush=True)
    signal.pause()


def count_for_ever(word: str) -> None:
    number = 0
    while True:
        print(word, number, flush=True)
        number += 1


async def greet() -> None:
    import os

    print(os.environ["EDDA_TEST_GREETING"])


def give_up() -> None:
    print("out of paper", flush=True)
    sys.exit(3)
