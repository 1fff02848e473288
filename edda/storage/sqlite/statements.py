"""Many rows, few steps.

``sqlite3`` lets go of Python's interpreter lock for every row that a statement writes or returns. While another thread
computes, each of these moments may cost 5 ms until the lock comes back: a flush of 50 turns row by row took 200 ms
beside a busy thread. So rows are written 16 to a statement, and what decides a flush is read as one row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeVar

Value = int | str | bytes | None
T = TypeVar("T")

#: Rows per statement, and halves of it for the rest: few texts, all of which stay prepared.
_ROWS = 16

#: Values per IN list.
_VALUES = 512

#: Prepared statements that a connection keeps.
PREPARED = 512


def write(c: sqlite3.Connection, head: str, row: str, rows: Sequence[Sequence[Value]], tail: str = "") -> int:
    """Run ``head row, row, ... tail`` for all rows, in their order; how many rows were changed.

    Let ``head`` say OR FAIL: what fails is rolled back as a whole anyway, and to be able to undo a statement alone
    costs SQLite a copy of every page that it touches.
    """
    changed = at = 0
    while at < len(rows):
        count = _ROWS
        while count > len(rows) - at:
            count //= 2
        values = list(chain.from_iterable(rows[at : at + count]))
        changed += c.execute(_repeat(head, row, count, tail), values).rowcount
        at += count
    return changed


def among(values: Sequence[T]) -> Iterator[tuple[str, Sequence[T]]]:
    """``(?, ?, ...)`` with its values, in pieces; padded, so that the same few texts come again."""
    for at in range(0, len(values), _VALUES):
        piece = values[at : at + _VALUES]
        size = 1 << (len(piece) - 1).bit_length()
        yield _marks(size), [*piece, *[piece[-1]] * (size - len(piece))]


def pairs(values: Sequence[tuple[T, T]]) -> Iterator[tuple[str, Sequence[T]]]:
    """``(VALUES (?, ?), ...)`` with its values, to be joined as a table; in pieces and padded, as in ``among``."""
    for at in range(0, len(values), _VALUES):
        piece = values[at : at + _VALUES]
        size = 1 << (len(piece) - 1).bit_length()
        padded = [*piece, *[piece[-1]] * (size - len(piece))]
        yield _repeat("(VALUES", "(?, ?)", size, ")"), list(chain.from_iterable(padded))


@lru_cache(maxsize=PREPARED)
def _repeat(head: str, row: str, count: int, tail: str) -> str:
    return f"{head} {', '.join([row] * count)} {tail}"


@lru_cache
def _marks(count: int) -> str:
    return f"({', '.join('?' * count)})"
