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


@dataclass(frozen=True, slots=True)
class Rendered:
    """A statement whose values are in it already."""

    packet: bytes

    def render(self) -> bytes:
        """The bytes to send."""
        return self.packet


def literal(value: Value) -> bytes:
    """A value as SQL, for a session without NO_BACKSLASH_ESCAPES.

    A backslash and a quote are all that ends a string early; every other byte, NUL too, may stand in a packet.
    """
    if isinstance(value, str):
        return b"'%s'" % value.encode().replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    if isinstance(value, bytes):
        return b"_binary'%s'" % value.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    return b"NULL" if value is None else b"%d" % value


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
) -> Iterator[Rendered]:
    """Multi-row inserts of at most ``max_bytes`` each (at least one row).

    Args:
        head: up to and with VALUES.
        row: one row with its ``%s``.
        rows: the values of each row.
        max_bytes: how much a statement may grow to.
        tail: what follows the rows.
    """
    template = row.encode()
    pieces: list[bytes] = []
    size = 0
    for values in rows:
        piece = template % tuple(map(literal, values))
        if pieces and size + len(piece) > max_bytes:
            yield Rendered(b"%s %s %s" % (head.encode(), b",".join(pieces), tail.encode()))
            pieces, size = [], 0
        pieces.append(piece)
        size += len(piece) + 1
    if pieces:
        yield Rendered(b"%s %s %s" % (head.encode(), b",".join(pieces), tail.encode()))


def pairs(first: str, second: str, keys: Sequence[tuple[Value, Value]]) -> Statement:
    """A condition that is true for these pairs."""
    if len(keys) == 1:
        # MariaDB finds no index for a row compared with a list of one: it would read, and lock, the whole table.
        return Statement(f"({first} = %s AND {second} = %s)", keys[0])
    return Statement(
        f"({first}, {second}) IN ({', '.join(['(%s, %s)'] * len(keys))})",
        [value for pair in keys for value in pair],
    )
