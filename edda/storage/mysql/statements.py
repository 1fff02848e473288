"""SQL as text and values, and its rendering to the bytes of a packet.

Rendered here and not by the driver, because the exact size decides how rows are split under ``max_allowed_packet``,
and because escaping payloads byte by byte is where the driver's time goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Value = int | str | bytes | None

#: The database's clock in microseconds since 1970; UTC, so that no session's time zone folds an hour twice.
CLOCK = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


@dataclass(frozen=True, slots=True)
class Statement:
    """``text`` has one ``%s`` per value."""

    text: str
    values: Sequence[Value] = ()

    def render(self) -> bytes:
        """The bytes to send. Raises UnicodeEncodeError for text that has no UTF-8 form (lone surrogates)."""
        return self.text.encode() % tuple(map(literal, self.values))


def literal(value: Value) -> bytes:
    """A value as SQL, for a session without NO_BACKSLASH_ESCAPES.

    A backslash and a quote are all that ends a string early; every other byte, NUL too, may stand in a packet.
    """
    if value is None:
        return b"NULL"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, bytes):
        return b"_binary'%s'" % value.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    return b"'%s'" % value.encode().replace(b"\\", b"\\\\").replace(b"'", b"\\'")


def marks(count: int) -> str:
    """``(%s, %s, ...)`` for that many values."""
    return f"({', '.join(['%s'] * count)})"


def start_transaction(offset_us: int) -> tuple[Statement, Statement]:
    """Begin, and read the one time of the transaction into ``@edda_now``."""
    return Statement("START TRANSACTION"), Statement(f"SET @edda_now = {CLOCK} + %s", (offset_us,))


COMMIT = Statement("COMMIT")
ROLLBACK = Statement("ROLLBACK")


def insert(
    head: str, row: str, rows: Iterable[Sequence[Value]], max_bytes: int, tail: str = ""
) -> Iterator[Statement]:
    """Multi-row inserts of at most ``max_bytes`` each (at least one row).

    Args:
        head: up to and with VALUES.
        row: one row with its ``%s``.
        rows: the values of each row.
        max_bytes: how much a statement may grow to.
        tail: what follows the rows.
    """
    values: list[Value] = []
    count = size = 0
    for one in rows:
        grown = sum(map(_size, one)) + len(row)
        if count and size + grown > max_bytes:
            yield Statement(f"{head} {', '.join([row] * count)} {tail}", values)
            values, count, size = [], 0, 0
        values.extend(one)
        count += 1
        size += grown
    if count:
        yield Statement(f"{head} {', '.join([row] * count)} {tail}", values)


def pairs(first: str, second: str, keys: Sequence[tuple[Value, Value]]) -> Statement:
    """A condition that is true for these pairs.

    Spelled with OR: MariaDB finds no index range in ``(a, b) IN (...)``.
    """
    one = f"({first} = %s AND {second} = %s)"
    return Statement(f"({' OR '.join([one] * len(keys))})", [value for pair in keys for value in pair])


def _size(value: Value) -> int:
    return len(value) + 11 if isinstance(value, str | bytes) else 20
