"""What the tests of this directory say in few words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa

from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.schema import outbox
from tests.support.databases import Database

#: A table of the user's own.
orders = sa.Table("orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))


@contextlib.asynccontextmanager
async def open_with_orders(database: Database) -> AsyncIterator[Storage]:
    """A store, migrated, beside the user's table."""
    store = open_store(database.url)
    await store.open()
    async with store.engine().begin() as connection:
        await connection.run_sync(orders.metadata.create_all)
    try:
        yield store
    finally:
        await store.close()


async def pending(store: Storage) -> list[sa.Row[Any]]:
    """Committed rows of the outbox, in order."""
    async with store.engine().connect() as connection:
        return list(await connection.execute(sa.select(outbox).order_by(outbox.c.id)))


async def order_ids(store: Storage) -> list[int]:
    """Committed orders."""
    async with store.engine().connect() as connection:
        return list((await connection.execute(sa.select(orders.c.id).order_by(orders.c.id))).scalars())
