"""From a database URL to its store. Nothing is connected yet."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from edda.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from edda.storage.contract import Storage

_KNOWN = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "mysql": "mysql",
    "mysql+aiomysql": "mysql",
    "mariadb": "mysql",
    "mariadb+aiomysql": "mysql",
}

_EXAMPLES = (
    "sqlite:///orders.db, postgresql://user:password@host/database or mysql://user:password@host/database"
)


def open_store(
    url: str,
    *,
    pool_size: int = 5,
    max_overflow: int = 10,
    pool_timeout: float = 30,
    pool_recycle: float = 3600,
) -> Storage:
    """The store for a URL.

    Raises ConfigurationError for a URL that is none or has an unknown scheme, MissingExtraError where the driver is
    missing.
    """
    if url.startswith("memory:"):
        return importlib.import_module("edda.storage.memory").MemoryStore()  # type: ignore[no-any-return]
    kind, parsed = read_url(url)
    if kind == "sqlite":
        return _sqlite(parsed)
    pool: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "pool_timeout": pool_timeout,
        "pool_recycle": pool_recycle,
    }
    driver = {"postgresql": "asyncpg", "mysql": "aiomysql"}[kind]
    try:
        importlib.import_module(driver)
    except ImportError as error:
        what = {"postgresql": "PostgreSQL", "mysql": "MySQL"}[kind]
        raise MissingExtraError(f"{what} (driver {driver})", kind) from error
    name = {"postgresql": "PostgreSQLStore", "mysql": "MySQLStore"}[kind]
    store = getattr(importlib.import_module(f"edda.storage.{kind}.store"), name)
    return store(parsed, **pool)  # type: ignore[no-any-return]


def read_url(url: str) -> tuple[str, sa.URL]:
    """Which database ("sqlite", "postgresql" or "mysql"), and the URL as SQLAlchemy reads it.

    Raises ConfigurationError for what is no URL and for an unknown scheme; neither shows a password.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigurationError(
            "the database URL cannot be read (it is not shown, as it may hold a password). Nothing was opened. "
            f"It looks like {_EXAMPLES}; characters like @ : / # in a password are written as %40 %3A %2F %23."
        ) from None
    kind = _KNOWN.get(parsed.drivername)
    if kind is None:
        raise ConfigurationError(
            f"unknown scheme {parsed.drivername!r} in the database URL. Nothing was opened. Use {_EXAMPLES}."
        )
    return kind, parsed


def _sqlite(url: sa.URL) -> Storage:
    from edda.storage.sqlite.store import SQLiteStore

    if url.database in {None, "", ":memory:"}:
        # Several connections must see it, and a shared in-memory database has no lock that waits.
        path = Path(tempfile.mkstemp(prefix="edda-", suffix=".db")[1])
        return SQLiteStore(url.set(database=str(path)), temporary=path)
    return SQLiteStore(url)
