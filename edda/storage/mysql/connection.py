"""Connections of our own: several statements in one packet, session settings, a pool.

SQLAlchemy's connections serve users' sessions and cold queries; the hot transactions use these.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiomysql
import sqlalchemy as sa

from edda.errors import StorageDataError, StorageUnavailableError
from edda.storage.mysql.statements import ROLLBACK, Rendered, Statement

Row = tuple[Any, ...]

#: Smallest session timeout; a shorter one would have to drop and make connections all the time.
MIN_WAIT_TIMEOUT = 10

#: Without NO_BACKSLASH_ESCAPES and ANSI_QUOTES, whatever the server's default: ``statements.literal`` relies on it.
SQL_MODE = (
    "STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
)


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]  # the driver has no types
    """Asks for no warnings: strict mode makes errors of those that matter, and asking is a round trip."""

    async def _show_warnings(self, _connection: object) -> None:
        return


@dataclass(frozen=True, slots=True)
class Result:
    """Of one statement: the rows, or how many rows were changed."""

    rows: Sequence[Row]
    changed: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and how to speak to it; never shown, since it holds the password."""

    url: sa.URL = field(repr=False)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """From the URL: ``?ssl=true``, ``ssl_ca``, ``ssl_cert`` with ``ssl_key``, ``ssl_check_hostname=false``."""
        query = self.url.query
        if not any(key in query for key in ("ssl", "ssl_ca", "ssl_cert")):
            return None
        context = ssl.create_default_context(cafile=_text(query.get("ssl_ca")))
        if _text(query.get("ssl_check_hostname")) in {"false", "0"}:
            context.check_hostname = False
        if certificate := _text(query.get("ssl_cert")):
            context.load_cert_chain(certificate, _text(query.get("ssl_key")))
        return context

    @property
    def for_sqlalchemy(self) -> sa.URL:
        """The same for ``create_async_engine``, which is given ``tls`` by itself."""
        return self.url.set(
            drivername="mysql+aiomysql",
            query={
                "charset": "utf8mb4",
                **{key: value for key, value in self.url.query.items() if not key.startswith("ssl")},
            },
        )


def session_settings(wait_timeout: int, lock_timeout: int) -> str:
    """What each connection is told first, as one packet.

    ``wait_timeout``: a client that is stopped inside a transaction is disconnected, so that its locks are free for
    others before its lease has ended. ``net_write_timeout``: the same for one that is stopped while it should read.
    """
    return (
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; "
        f"SET SESSION wait_timeout = {wait_timeout}, net_write_timeout = {wait_timeout}, "
        f"innodb_lock_wait_timeout = {lock_timeout}, time_zone = '+00:00', sql_mode = '{SQL_MODE}'"
        # MariaDB turns a long IN list into a join, whose row locks come in the order of a temporary table.
        " /*M! , in_predicate_conversion_threshold = 0 */"
    )


class Link:
    """One connection, used by one task at a time."""

    def __init__(self, connection: Any, on_sent: Callable[[int], None]) -> None:
        self._connection = connection
        self._on_sent = on_sent
        self.max_packet = 1 << 20
        self.used_at = time.monotonic()

    @classmethod
    async def open(
        cls, address: Address, settings: str, on_sent: Callable[[int], None], timeout: float = 10.0
    ) -> Link:
        """Connect and set the session up. Raises what the driver raises, or TimeoutError."""
        url = address.url
        socket_path = _text(url.query.get("unix_socket"))
        async with asyncio.timeout(timeout):
            connection = await aiomysql.connect(
                host=url.host or "localhost",
                port=url.port or 3306,
                user=url.username,
                password=url.password or "",
                db=url.database,
                unix_socket=socket_path,
                charset="utf8mb4",
                autocommit=True,
                ssl=address.tls,
                cursorclass=_Cursor,
                program_name="edda",
            )
            link = cls(connection, on_sent)
            try:
                if socket_path is None:
                    _keep_alive(connection)
                await link.query(settings)
                link.max_packet = int((await link.query("SELECT @@max_allowed_packet"))[0].rows[0][0])
            except BaseException:
                link.close()
                raise
            return link

    async def run(self, *statements: Statement | Rendered) -> list[Result]:
        """Send the statements in one packet (more if it would be too large) and return their results in order.

        The server stops at the first error, so that a COMMIT at the end is reached only if all before it went well.

        Raises:
            StorageDataError: one statement alone is larger than the server takes.
        """
        packet: list[bytes] = []
        size = 0
        results: list[Result] = []
        for statement in statements:
            rendered = statement.render()
            if len(rendered) >= self.max_packet:
                # Sent, it would cost the connection, and the answer would read as "server gone away".
                raise StorageDataError(
                    f"a statement of {len(rendered)} bytes was refused: the server takes {self.max_packet} "
                    "(max_allowed_packet). Nothing was written; store less in one value, or raise the setting."
                )
            if packet and size + len(rendered) + 1 >= self.max_packet:
                results += await self.query(b";".join(packet))
                packet, size = [], 0
            packet.append(rendered)
            size += len(rendered) + 1
        if packet:
            results += await self.query(b";".join(packet))
        return results

    async def query(self, packet: str | bytes) -> list[Result]:
        """One round trip."""
        self.used_at = time.monotonic()
        self._on_sent(1)
        results = []
        async with self._connection.cursor() as cursor:
            await cursor.execute(packet)
            results.append(Result(await cursor.fetchall(), cursor.rowcount))
            while await cursor.nextset():
                results.append(Result(await cursor.fetchall(), cursor.rowcount))
        return results

    async def rollback(self) -> bool:
        """End the transaction after an error; False: the connection is of no use any more."""
        if self.is_lost:
            return False
        try:
            await self.run(ROLLBACK)
        except Exception:  # noqa: BLE001, whatever it is, the connection is given up
            return False
        return True

    @property
    def is_lost(self) -> bool:
        """True if the connection is closed, also by the server while it was idle."""
        connection = self._connection
        return bool(connection.closed or connection._reader.eof_received)  # noqa: SLF001, as the driver's pool does

    def close(self) -> None:
        """Close the socket at once; the server rolls back what was open."""
        self._connection.close()


class Pool:
    """At most ``size`` connections; idle ones are dropped before the server drops them.

    aiomysql's own pool connects while it holds the lock that giving back needs: one server that does not answer
    stops every user of the pool. This one connects outside of any lock.
    """

    def __init__(self, connect: Callable[[], Any], size: int, timeout: float, max_idle: float) -> None:
        self._connect = connect
        self._slots = asyncio.Semaphore(size)
        self._timeout = timeout
        self._max_idle = max_idle
        self._free: list[Link] = []
        self._closed = False

    @asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """A connection with no transaction open. Closed if the block raises: its transaction then is over for sure."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError as error:
            raise StorageUnavailableError(
                f"no database connection became free within {self._timeout:g} s. Nothing was written; raise "
                "pool_size if this repeats."
            ) from error
        try:
            link = self._take() or await self._connect()
            try:
                yield link
            except BaseException:
                link.close()
                raise
            if self._closed:
                link.close()
            else:
                self._free.append(link)
        finally:
            self._slots.release()

    def clear(self) -> None:
        """Drop what is idle: after one connection was lost the others may be, too."""
        while self._free:
            self._free.pop().close()

    def close(self) -> None:
        """Drop what is idle, and what is in use as soon as it is given back."""
        self._closed = True
        self.clear()

    def _take(self) -> Link | None:
        limit = time.monotonic() - self._max_idle
        while self._free:
            link = self._free.pop()
            if link.used_at > limit and not link.is_lost:
                return link
            link.close()
        return None


def _keep_alive(connection: Any) -> None:
    # A peer that vanished is noticed within half a minute, not after the two hours that are the default.
    raw = connection._writer.get_extra_info("socket")  # noqa: SLF001
    for option, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 25_000),
    ):
        if hasattr(socket, option):
            with suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _text(value: str | tuple[str, ...] | None) -> str | None:
    return value[-1] if isinstance(value, tuple) else value
