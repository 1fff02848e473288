"""Programs that tests start as processes of their own."""

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic import command

from edda.storage.connect import open_store


async def _migrate(url: str) -> None:
    store = open_store(url)
    try:
        await store.open()
        await store.migrate()
    finally:
        await store.close()


def _fork(work: Callable[[], None]) -> int:
    """Run it in a process of its own; the process's id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            os._exit(1)
        os._exit(0)
    return child


def _end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def migrate_ten_times_at_once(url: str) -> None:
    """Ten processes that wait for one starting signal; prints their exit statuses."""
    gate, opener = os.pipe()

    def work() -> None:
        os.close(opener)
        os.read(gate, 1)  # returns when the parent closes the other end
        asyncio.run(_migrate(url))

    children = [_fork(work) for _ in range(10)]
    os.close(opener)
    print("exits", [_end_of(child) for child in children])


def migrate_and_be_killed(url: str) -> None:
    """Processes that kill themselves before the 1st, 6th, ... statement of the migration, until one has none left.

    Prints how they ended.
    """
    exits = []
    for statement in range(1, 200, 5):
        exits.append(_end_of(_fork(partial(_killed_before, statement, url))))
        if exits[-1] != -signal.SIGKILL:
            break
    print("exits", exits)


def _killed_before(statement: int, url: str) -> None:
    seen = 0

    def count(_c: Any, _cursor: Any, sql: str, *_: Any) -> None:
        nonlocal seen
        seen += sql.lstrip().upper().startswith(("CREATE", "ALTER", "INSERT", "UPDATE"))
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    upgrade = command.upgrade

    def watched(config: Any, *args: Any, **options: Any) -> None:
        sa.event.listen(config.attributes["connection"], "before_cursor_execute", count)
        upgrade(config, *args, **options)

    command.upgrade = watched
    asyncio.run(_migrate(url))
