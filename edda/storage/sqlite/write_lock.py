"""Whose turn it is to write. A SQLite file has one write lock and keeps no queue for it.

Who waits has to ask again and again. SQLite's own way is to ask after pauses that grow to 0.1 s; a process that commits
and begins again is between two transactions for microseconds, so that another's heartbeat came through after 0.1 s
in the middle and 2 s at worst. Here, who waits asks about every millisecond; and once the lock was seen in somebody
else's hands, nobody in this process begins within a millisecond after its own last commit.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edda.storage.sqlite.errors import is_busy

#: Seconds to wait for the lock before the transaction is given up.
BUSY_TIMEOUT = 10.0

_YIELD = 0.001
_LONGEST_PAUSE = 0.01

#: Seconds for which somebody else is reckoned with after the lock was seen in their hands.
_REMEMBERED = 5.0


class WriteLock:
    """How all connections of this process take the write lock of one file. Used from several threads."""

    def __init__(self) -> None:
        self._others_until = 0.0
        self._released_at = 0.0
        self._waiting = 0

    def begin(self, connection: sqlite3.Connection) -> None:
        """BEGIN IMMEDIATE, on a connection with busy_timeout 0. Raises SQLITE_BUSY after ``BUSY_TIMEOUT``."""
        began = time.monotonic()
        if self.is_contended:
            time.sleep(max(0.0, self._released_at + _YIELD - began))
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - began
                if not is_busy(error) or waited > BUSY_TIMEOUT:
                    raise
            else:
                return
            self._others_until = time.monotonic() + _REMEMBERED
            time.sleep(min(max(_YIELD, waited / 20), _LONGEST_PAUSE))

    @property
    def is_contended(self) -> bool:
        """Whether somebody else wants the lock, or had it a short time ago."""
        return bool(self._waiting) or time.monotonic() < self._others_until

    def released(self) -> None:
        """A transaction of this process has ended."""
        self._released_at = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a user's session waits for the lock in SQLite's own way: the others of this process make room."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
