"""The PostgreSQL store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from edda.errors import StorageDataError, StorageUnavailableError
from edda.storage.contract import HintListener
from edda.storage.core.store import CoreStore, Transaction, TransientError
from edda.storage.core.traits import PostgreSQLTraits
from edda.storage.rows import Beat

log = logging.getLogger("edda.storage")

T = TypeVar("T")

HINT_CHANNEL = "edda_hint"

_TRANSIENT = {"40001", "40P01", "55P03"}
_CONNECTION = ("08", "57P", "53")
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


class PostgreSQLStore(CoreStore):
    """One database (and schema)."""

    dialect = "postgresql"
    has_hints = True

    def __init__(
        self,
        url: sa.URL,
        *,
        pool_size: int = 5,
        max_overflow: int = 10,
        pool_timeout: float = 30,
        pool_recycle: float = 3600,
    ) -> None:
        super().__init__(url, PostgreSQLTraits())
        self._pool: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "pool_timeout": pool_timeout,
            "pool_recycle": int(pool_recycle),
        }
        self._engine: AsyncEngine | None = None

    async def open(self, lease_us: int = 30_000_000) -> None:
        """See the contract."""
        self.lease_us = lease_us
        await self.ping()
        await self._check_durability()

    async def _check_durability(self) -> None:
        def read(c: sa.Connection) -> dict[str, str]:
            return {name: c.execute(sa.text(f"SHOW {name}")).scalar_one() for name in _SETTINGS}

        for name, value in (await self._run(read, write=False)).items():
            if value == "off" or (name == "synchronous_commit" and value == "local"):
                log.warning(
                    "database_not_durable: acknowledged work can be lost in a crash",
                    extra={"setting": name, "value": value, "wanted": _SETTINGS[name]},
                )

    async def close(self) -> None:
        """See the contract."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.dispose()

    def connect_arguments(self) -> dict[str, Any]:
        """For every connection: whoever is stopped in the middle holds nothing for longer than half a lease."""
        half = max(1_000, self.lease_us // 2_000)
        return {
            "timeout": 10,
            "server_settings": {
                "application_name": "edda",
                "default_transaction_isolation": "read committed",
                "idle_in_transaction_session_timeout": str(half),
                "lock_timeout": str(max(1_000, half // 2)),
                "statement_timeout": str(max(30_000, half)),
                "tcp_keepalives_idle": "10",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
            },
        }

    def engine(self) -> AsyncEngine:
        """See the contract."""
        if self._engine is None:
            self._engine = create_async_engine(
                self.url.set(drivername="postgresql+asyncpg"),
                connect_args=self.connect_arguments(),
                **self._pool,
            )
        return self._engine

    async def _once(self, work: Transaction[T], *, write: bool) -> T:
        async with self.engine().connect() as connection:
            self.statements += 1
            async with connection.begin():
                return await connection.run_sync(work)

    def _classify(self, error: BaseException) -> BaseException | None:
        return classify(error)

    # ---------------------------------------------------------------- hints

    async def notify(self, hints: Sequence[str]) -> None:
        """See the contract."""
        hints = list(hints)
        statement = sa.text("SELECT pg_notify(:channel, hint) FROM unnest(CAST(:hints AS text[])) AS hint")
        await self._run(lambda c: c.execute(statement, {"channel": HINT_CHANNEL, "hints": hints}).all())

    @contextlib.asynccontextmanager
    async def listen(self, listener: HintListener) -> AsyncIterator[None]:
        """See the contract."""
        task = asyncio.get_running_loop().create_task(self._listen_for_ever(listener))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen_for_ever(self, listener: HintListener) -> None:
        pause = 0.2
        while True:
            lost = asyncio.Event()
            try:
                connection = await self.connect()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("hints_not_heard", extra={"error": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10.0)
                continue
            try:
                connection.add_termination_listener(lambda *_: lost.set())
                await connection.add_listener(
                    HINT_CHANNEL, lambda _c, _p, _ch, payload: listener(str(payload))
                )
                listener("run:*")  # what came while nobody listened
                pause = 0.2
                await lost.wait()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("hints_not_heard", extra={"error": str(error)})
            finally:
                connection.terminate()

    async def connect(self) -> asyncpg.Connection[Any]:
        """A connection of its own, outside the pool."""
        return await asyncpg.connect(
            host=self.url.host,
            port=self.url.port or 5432,
            user=self.url.username,
            password=self.url.password,
            database=self.url.database,
            **self.connect_arguments(),
        )

    def heart(self) -> PostgreSQLHeart:
        """See the contract."""
        return PostgreSQLHeart(self)


def classify(error: BaseException) -> BaseException | None:
    """What a driver's error means."""
    if isinstance(error, sa.exc.TimeoutError):
        return StorageUnavailableError("PostgreSQL: no connection of the pool came free; raise pool_size")
    if isinstance(error, sa.exc.DBAPIError):
        error = error.orig or error
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    text = str(error).replace("\n", " ")
    if state in _TRANSIENT:
        return TransientError(text)
    if state is not None and state.startswith(_CONNECTION):
        return StorageUnavailableError(f"PostgreSQL: {text}")
    if state is not None and state.startswith(("22", "23", "54")):
        return StorageDataError(f"PostgreSQL refuses a value: {text}")
    cause = error.__cause__ or error
    if isinstance(cause, OSError | TimeoutError | asyncpg.InterfaceError | ConnectionError):
        return StorageUnavailableError(f"PostgreSQL: {text or type(cause).__name__}")
    if isinstance(cause, asyncpg.DataError | UnicodeEncodeError):
        return StorageDataError(f"PostgreSQL refuses a value: {text}")
    return None


class PostgreSQLHeart:
    """The lease thread's own connection."""

    def __init__(self, store: PostgreSQLStore) -> None:
        self._store = store
        self._engine = create_async_engine(
            store.url.set(drivername="postgresql+asyncpg"),
            connect_args=store.connect_arguments(),
            poolclass=sa.pool.AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
        )

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        """See the contract."""
        try:
            async with self._engine.begin() as connection:
                self._store.statements += 1
                return await connection.run_sync(lambda c: self._store.beat_on(c, worker, app, lease_us))
        except Exception as error:
            classified = classify(error)
            raise StorageUnavailableError(f"PostgreSQL: {error}") from (
                error if classified is None else classified
            )

    async def close(self) -> None:
        """See the contract."""
        await self._engine.dispose()
