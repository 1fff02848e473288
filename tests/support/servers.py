"""The database servers of a run: where each comes from, and that it starts once for all processes."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tests.support import containers, postgresql_binaries, run
from tests.support.eventually import eventually

T = TypeVar("T")
ServerKind = Literal["postgresql", "mysql", "mariadb"]

READY_WITHIN = 120.0
"""Seconds a server has to serve after its start; generous, for machines that do much at once."""


class UnavailableError(Exception):
    """This server cannot be had here; the message says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    variable: str
    image: str
    port: int
    url: str
    environment: dict[str, str]
    command: tuple[str, ...]
    tmpfs: str

    @property
    def image_to_use(self) -> str:
        return os.environ.get(f"EDDA_TEST_{self.variable}_IMAGE", self.image)


# Data lives in memory, because a run forgets it; what a commit promises stays as in production. The number of
# connections is enough for a dozen workers with a pool each.
_MYSQL = ("--innodb-flush-log-at-trx-commit=1", "--max-connections=500")
_RECIPES: dict[ServerKind, _Recipe] = {
    "postgresql": _Recipe(
        "POSTGRES",
        "postgres:17",
        5432,
        "postgresql://edda:edda@{host}:{port}/postgres",
        {
            "POSTGRES_USER": "edda",
            "POSTGRES_PASSWORD": "edda",
            "POSTGRES_DB": "edda",
            "PGDATA": "/memory/data",
        },
        ("postgres", "-c", "max_connections=500"),
        "/memory",
    ),
    "mysql": _Recipe(
        "MYSQL",
        "mysql:9",
        3306,
        "mysql://root:edda@{host}:{port}/mysql",
        {"MYSQL_ROOT_PASSWORD": "edda"},
        _MYSQL,
        "/var/lib/mysql",
    ),
    "mariadb": _Recipe(
        "MARIADB",
        "mariadb:11",
        3306,
        "mysql://root:edda@{host}:{port}/mysql",
        {"MARIADB_ROOT_PASSWORD": "edda", "MYSQL_ROOT_PASSWORD": "edda"},
        _MYSQL,
        "/var/lib/mysql",
    ),
}


def admin_url(kind: ServerKind) -> str:
    """The URL of a server that may create databases; started on first use, then shared by the whole run.

    Raises:
        UnavailableError: it cannot be had; asking again in this run fails at once.
    """
    if url := os.environ.get(variable(kind)):
        return url
    with run.lock(kind):
        known = run.directory() / f"{kind}.json"
        if not known.exists():
            known.write_text(json.dumps(_start(kind)))
        found: dict[str, str] = json.loads(known.read_text())
    if "url" not in found:
        raise UnavailableError(found["reason"])
    return found["url"]


def variable(kind: ServerKind) -> str:
    """The environment variable that names a server to use instead of starting one."""
    return f"EDDA_TEST_{_RECIPES[kind].variable}_URL"


def serves(url: str) -> bool:
    """True if a server answers there now."""

    async def ask() -> None:
        async with engine(url).connect() as connection:
            await connection.execute(sa.text("SELECT 1"))

    try:
        run_apart(ask)
    except Exception:
        return False
    return True


def stop_all() -> None:
    """Stop what this run has started."""
    containers.remove_all()
    postgresql_binaries.stop_all()


def engine(url: str) -> AsyncEngine:
    """An engine for setting up: it keeps no connection and commits each statement by itself."""
    return create_async_engine(with_driver(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")


def with_driver(url: str) -> str:
    """The same URL with the name of the asynchronous driver in it, as SQLAlchemy wants it."""
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mysql": "mysql+aiomysql"}
    parsed = sa.make_url(url)
    driver = drivers.get(parsed.drivername, parsed.drivername)
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work()`` in an event loop of its own in another thread: works inside a running loop, too."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


def _start(kind: ServerKind) -> dict[str, str]:
    tried = []
    sources = [_from_container] if kind != "postgresql" else [_from_container, _from_binaries]
    for source in sources:
        try:
            return {"url": source(_RECIPES[kind])}
        except Exception as error:
            tried.append(f"{source.__name__.removeprefix('_from_')}: {type(error).__name__}: {error}")
    setting = f"EDDA_TEST_{_RECIPES[kind].variable}"
    return {
        "reason": f"no {kind} server for the tests. Tried {'; '.join(tried)}. Start a container engine, or "
        f"set {setting}_URL to a server whose user may create databases, or {setting}_IMAGE to an image that "
        "this machine has."
    }


def _from_container(recipe: _Recipe) -> str:
    started = containers.start(
        recipe.image_to_use,
        recipe.port,
        environment=recipe.environment,
        command=recipe.command,
        tmpfs=[recipe.tmpfs],
    )
    url = recipe.url.format(host=started.host, port=started.port)
    run_apart(lambda: _wait_until_it_serves(url, started.id))
    return url


def _from_binaries(_recipe: _Recipe) -> str:
    return postgresql_binaries.start()


async def _wait_until_it_serves(url: str, container: str) -> None:
    admin = engine(url)

    async def serves() -> bool:
        if logs := containers.logs_if_stopped(container):
            msg = f"the container stopped by itself:\n{logs}"
            raise RuntimeError(msg)
        try:
            async with admin.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))
        except Exception as error:
            msg = f"{type(error).__name__}: {error}"
            raise AssertionError(msg) from error
        return True

    await eventually(serves, READY_WITHIN, pause=0.2)
