"""Connections of our own: where the server is, what a session is told, one statement per transaction, a pool.

SQLAlchemy's connections serve users' sessions and cold statements; the hot transactions use these.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import sqlalchemy as sa

from edda.errors import ConfigurationError, StorageUnavailableError
from edda.storage.postgresql.frozen import OWN_SESSION

Row = asyncpg.Record

#: Settings of a session, by name.
Settings = Mapping[str, str]

#: Seconds to connect, unless the URL says otherwise (``?connect_timeout=``).
CONNECT_TIMEOUT = 10.0

#: What asyncpg reads from a URL; every other parameter is a setting of the session, as in libpq's ``options``.
_ADDRESS = {
    *("host", "port", "dbname", "database", "user", "password", "passfile", "service", "servicefile"),
    *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib"),
}
_POOLED = ("statement_cache_size", "prepared_statement_cache_size")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and how to speak to it; never shown, since it holds the password.

    Attributes:
        dsn: what asyncpg takes.
        settings: of the session, for example ``search_path``.
        pooled: a pooler in transaction mode (PgBouncer) is in between, so that no session is ours: no startup
            settings, no named statements, no LISTEN; each transaction sets what it needs. Asked for by
            ``?statement_cache_size=0`` (or ``prepared_statement_cache_size=0``, as for SQLAlchemy).
    """

    dsn: str = field(repr=False)
    settings: Settings
    pooled: bool
    connect_timeout: float

    @classmethod
    def of(cls, url: sa.URL) -> Address:
        """Raises ConfigurationError for a parameter that cannot be read."""
        query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
        sizes = [query.pop(name) for name in _POOLED if name in query]
        timeouts = [query.pop(name) for name in ("connect_timeout", "timeout") if name in query]
        ssl = query.pop("ssl", None)  # as for SQLAlchemy with asyncpg
        if ssl is not None and "sslmode" not in query:
            query["sslmode"] = {"true": "require", "false": "disable"}.get(ssl.lower(), ssl)
        address = {name: query.pop(name) for name in list(query) if name in _ADDRESS}
        try:
            pooled = any(int(size) == 0 for size in sizes)
            timeout = float(timeouts[0]) if timeouts else CONNECT_TIMEOUT
            settings = {**_options(query.pop("options", "")), **query}
        except ValueError as error:
            raise ConfigurationError(
                f"a parameter of the database URL cannot be read: {error}. Nothing was connected; see libpq's "
                "connection parameters for their form."
            ) from error
        dsn = url.set(drivername="postgresql", query=address).render_as_string(hide_password=False)
        return cls(dsn, settings, pooled, timeout)

    async def connect(self, settings: Settings, command_timeout: float | None) -> asyncpg.Connection[Row]:
        """A new connection; ``settings`` are those of its session, unless ``pooled``."""
        try:
            connection = await asyncpg.connect(
                self.dsn,
                timeout=self.connect_timeout,
                command_timeout=command_timeout,
                statement_cache_size=0 if self.pooled else 100,
                max_cached_statement_lifetime=0,
                connection_class=_PooledConnection if self.pooled else asyncpg.Connection,
                server_settings={"application_name": OWN_SESSION, **({} if self.pooled else settings)},
            )
        except asyncpg.ClientConfigurationError as error:
            raise ConfigurationError(
                f"the database URL is refused: {error}. Nothing was connected."
            ) from error
        _keep_alive(connection)
        return connection


def _options(text: str) -> dict[str, str]:
    """``-c name=value --name=value``, as libpq takes them."""
    words = [word for word in shlex.split(text) if word != "-c"]
    settings = {}
    for word in words:
        name, equals, value = word.removeprefix("--").removeprefix("-c").partition("=")
        if not equals:
            raise ValueError(f"options: {word!r} is not of the form '-c name=value'")
        settings[name.replace("-", "_")] = value
    return settings


class _PooledConnection(asyncpg.Connection):
    """Behind a pooler even looking up a type, two round trips, must be one transaction."""

    async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
        async with self.transaction():
            await super().set_type_codec(*args, **kwargs)


def _keep_alive(connection: asyncpg.Connection[Row]) -> None:
    # A server that vanished is noticed within half a minute, not after the two hours that are the default.
    raw = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001, no public way
    if raw is None or raw.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    options = [(socket.SOL_SOCKET, "SO_KEEPALIVE", 1)]
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 25_000),
    ):
        options.append((socket.IPPROTO_TCP, name, value))
    for level, name, value in options:
        if hasattr(socket, name):
            with suppress(OSError):
                raw.setsockopt(level, getattr(socket, name), value)


# ---------------------------------------------------------------------------------------------- hot transactions


def session_settings(lease_us: int) -> dict[str, str]:
    """What a session of Edda's own is told.

    Whoever is stopped in the middle of something holds it for no longer than half a lease.
    """
    half = max(1_000, lease_us // 2_000)
    return {
        "default_transaction_isolation": "read committed",
        "idle_in_transaction_session_timeout": str(half),
        "lock_timeout": str(max(500, half // 2)),
        "statement_timeout": str(max(30_000, half)),
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }


def hot_settings(lease_us: int) -> dict[str, str]:
    """What a session of hot transactions is told.

    Plans are kept while tables grow, so that none may rest on reading a whole table while that was cheap, nor collect
    all rows of an index entry before it stops at a limit. A plan that cannot do without has absurd costs, for which
    nothing shall be compiled.
    """
    return {
        **session_settings(lease_us),
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "jit": "off",
    }


class Link:
    """One connection, used by one task at a time, for transactions of one statement each."""

    def __init__(
        self, connection: asyncpg.Connection[Row], begin: str, on_sent: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._on_sent = on_sent
        self._prepared: set[str] = set()
        self.opened_at = time.monotonic()

    @classmethod
    async def open(cls, address: Address, settings: Settings, on_sent: Callable[[int], None]) -> Link:
        """Connect. Raises what asyncpg raises, OSError or TimeoutError."""
        # A server that accepts and then never answers is given up a little after it should have given up itself.
        patience = int(settings["statement_timeout"]) / 1_000 + 5
        settings = {**address.settings, **settings}
        connection = await address.connect(settings, patience)
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; {set_locally(settings)}" if address.pooled else ""
        return cls(connection, begin, on_sent)

    async def fetch(self, statement: str, *values: Any) -> list[Row]:
        """Run a statement in a transaction of its own: one round trip, once the server knows the statement.

        Behind a pooler it is four: begin with the settings, parse, run, commit.
        """
        if self._begin:
            self._on_sent(4)
            await self._connection.execute(self._begin)
            rows = await self._connection.fetch(statement, *values)
            await self._connection.execute("COMMIT")
            return rows
        if statement in self._prepared:
            self._on_sent(1)
        else:
            self._on_sent(2)
            self._prepared.add(statement)
        return await self._connection.fetch(statement, *values)

    async def rollback(self) -> bool:
        """End what may be open after an error; False: the connection is of no use any more."""
        if self.is_lost:
            return False
        if self._begin:
            try:
                await self._connection.execute("ROLLBACK")
            except Exception:  # noqa: BLE001, whatever it is, the connection is given up
                return False
        return not self._connection.is_in_transaction()

    @property
    def is_lost(self) -> bool:
        """True if the connection is closed, also by the server while it was idle."""
        return self._connection.is_closed()

    def close(self) -> None:
        """Close the socket at once; the server rolls back what was open."""
        self._connection.terminate()


def set_locally(settings: Settings) -> str:
    """One SELECT that sets up the transaction it runs in, for a session that is not ours."""
    calls = [
        f"set_config({_literal(name)}, {_literal(value)}, true)"
        for name, value in settings.items()
        if not name.startswith(("tcp_", "default_transaction_"))  # of the session, or of transactions to come
    ]
    return f"SELECT {', '.join(calls)}" if calls else ""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Pool:
    """At most ``size`` connections.

    Not asyncpg's: that one resets each connection when it comes back, which is a round trip more for every
    transaction, and it connects while it holds a queue's place.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Link]], size: int, timeout: float, recycle: float
    ) -> None:
        self._connect = connect
        self._slots = asyncio.Semaphore(size)
        self._timeout = timeout
        self._recycle = recycle
        self._free: list[Link] = []
        self._closed = False

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """A connection with no transaction open. Closed if the block raises: its transaction then is over for sure."""
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()
        try:
            link = self._take() or await self._connect()
            try:
                yield link
            except BaseException:
                link.close()
                raise
            if self._closed or link.is_lost:
                link.close()
            else:
                self._free.append(link)
        finally:
            self._slots.release()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError as error:
            raise StorageUnavailableError(
                f"no database connection became free within {self._timeout:g} s. Nothing was written; raise "
                "pool_size if this repeats."
            ) from error

    def clear(self) -> None:
        """Drop what is idle: after one connection was lost the others may be, too."""
        while self._free:
            self._free.pop().close()

    def close(self) -> None:
        """Drop what is idle, and what is in use as soon as it is given back."""
        self._closed = True
        self.clear()

    def _take(self) -> Link | None:
        limit = time.monotonic() - self._recycle
        while self._free:
            link = self._free.pop()
            if link.opened_at > limit and not link.is_lost:
                return link
            link.close()
        return None


def one(rows: Sequence[Row]) -> Row:
    """The only row."""
    (row,) = rows
    return row
