"""What runs in processes of its own."""

import time

import sqlalchemy as sa

from edda.storage.connect import open_store
from edda.storage.sqlite.store import SQLiteStore
from tests.storage import given


async def flush_until_killed(url: str, name: str) -> None:
    """One record after the other, without a pause."""
    store = open_store(url)
    await store.open()
    await given.started(store, name)
    print("flushes", flush=True)
    number = 0
    while True:
        number += 1
        await store.flush([given.turn(name, number)])


async def stop_in_a_transaction(url: str) -> None:
    """Write, and then do nothing, for ever."""
    store = open_store(url)
    assert isinstance(store, SQLiteStore)

    def half(c: sa.Connection) -> None:
        c.exec_driver_sql("UPDATE edda_accept SET last_seq = 99")
        print("half written", flush=True)
        while True:
            time.sleep(1)

    await store._run(half)
