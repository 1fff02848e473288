"""Fixtures for all tests: databases. See ``tests/README.md``."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.support import kafka as brokers
from tests.support import run, servers
from tests.support.databases import KINDS, Database, Kind, temporary_database
from tests.support.rabbitmq import own_rabbitmq, rabbitmq  # noqa: F401, fixtures

# Machines that do much at once are slow, and that is no finding.
settings.register_profile("edda", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edda")

_owns_the_run = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run, in the one process that owns it."""
    config.stash[_owns_the_run] = run.begin()
    if config.stash[_owns_the_run] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # SIGTERM would end this process without a word; as Ctrl-C it is cleaned up after.
        signal.signal(signal.SIGTERM, _interrupt)


@pytest.hookimpl(trylast=True)  # after pytest-xdist has ended its workers: nobody starts anything any more
def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers that any process of this run has started."""
    if config.stash.get(_owns_the_run, False):
        servers.stop_all()
        run.end()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _database(kind: Kind, request: pytest.FixtureRequest, directory: Path) -> Iterator[Database]:
    is_prepared = request.node.get_closest_marker("empty_database") is None
    try:
        with temporary_database(kind, directory, is_prepared=is_prepared) as database:
            yield database
            return
    except servers.UnavailableError as error:
        _give_up(str(error))


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("EDDA_REQUIRE_DATABASES") == "1":
        pytest.fail(f"EDDA_REQUIRE_DATABASES=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without rows; the test runs once for each kind."""
    yield from _database(request.param, request, tmp_path)


@pytest.fixture
def sqlite_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A SQLite database without rows."""
    yield from _database("sqlite", request, tmp_path)


@pytest.fixture
def postgresql_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A PostgreSQL database without rows."""
    yield from _database("postgresql", request, tmp_path)


@pytest.fixture
def mysql_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A MySQL database without rows."""
    yield from _database("mysql", request, tmp_path)


@pytest.fixture
def mariadb_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A MariaDB database without rows."""
    yield from _database("mariadb", request, tmp_path)


@pytest.fixture
def kafka() -> brokers.Kafka:
    """The run's broker."""
    try:
        return brokers.shared()
    except servers.UnavailableError as error:
        _give_up(str(error))


@pytest.fixture
def own_kafka() -> Iterator[brokers.Kafka]:
    """A broker that the test may stop; it keeps its data."""
    try:
        broker = brokers.start_own()
    except servers.UnavailableError as error:
        _give_up(str(error))
    yield broker
    brokers.remove(broker)
