"""A database of its own for each test, of each kind that Edda runs on."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support import prepared, servers

Kind = Literal["sqlite", "postgresql", "mysql", "mariadb"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database. ``url`` names no driver: it is what a user would write."""

    kind: Kind
    url: str

    @property
    def driver_url(self) -> str:
        """The URL with the asynchronous driver in it, for ``create_async_engine``."""
        return servers.with_driver(self.url)


@contextmanager
def temporary_database(kind: Kind, directory: Path, *, is_prepared: bool = False) -> Iterator[Database]:
    """Create a database and drop it afterwards, whoever is still connected to it.

    Args:
        kind: of which kind.
        directory: where SQLite keeps its file.
        is_prepared: with Edda's schema, as the migrations make it; else empty.

    Raises:
        servers.UnavailableError: there is no server of this kind.
    """
    if kind == "sqlite":
        file = directory / f"edda_{uuid.uuid4().hex}.db"
        if is_prepared:
            prepared.sqlite_file(file)
        yield Database(kind, f"sqlite:///{file}")
        return
    admin_url = servers.admin_url(kind)
    name = f"edda_{uuid.uuid4().hex}"
    if not is_prepared:
        servers.run_apart(lambda: _create(admin_url, f"CREATE DATABASE {name}"))
    elif kind == "postgresql":
        template = prepared.postgresql_template(admin_url)
        servers.run_apart(lambda: _create(admin_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    else:
        tables = prepared.mysql_statements(kind, admin_url)
        servers.run_apart(lambda: _create(admin_url, f"CREATE DATABASE {name}", f"USE {name}", *tables))
    try:
        url = sa.make_url(admin_url).set(database=name)
        yield Database(kind, url.render_as_string(hide_password=False))
    finally:
        servers.run_apart(lambda: _drop(admin_url, name))


async def _create(admin_url: str, *statements: str) -> None:
    async with servers.engine(admin_url).connect() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def _drop(admin_url: str, name: str) -> None:
    engine = servers.engine(admin_url)
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        else:
            # A connection with an open transaction would hold the DROP up, for a year by default.
            await _kill_connections(connection, name)
            await connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))


async def _kill_connections(connection: AsyncConnection, name: str) -> None:
    # MySQL's processlist cannot be read while any connection, of whatever database, runs a statement with binary data.
    query = sa.text(
        "SELECT id FROM information_schema.processlist WHERE db = :name"
        if getattr(connection.dialect, "is_mariadb", False)
        else "SELECT processlist_id FROM performance_schema.threads WHERE processlist_db = :name"
    )
    for (id_,) in (await connection.execute(query, {"name": name})).all():
        with suppress(sa.exc.DBAPIError):  # it has gone by itself
            await connection.execute(sa.text(f"KILL {int(id_)}"))
