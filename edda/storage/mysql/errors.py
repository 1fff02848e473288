"""What a driver's error means for the transaction that met it."""

from __future__ import annotations

import asyncio
from enum import Enum

from pymysql import err

from edda.errors import EddaError, SchemaError, StorageDataError, StorageUnavailableError


class CollisionError(Exception):
    """Somebody has inserted what was not there a moment ago; the transaction is run again. Internal."""


class Meaning(Enum):
    """What to do."""

    AGAIN = "again"  # roll back and run the whole transaction again: nothing of it was written
    UNAVAILABLE = "unavailable"  # whether it committed is unknown
    DATA = "data"  # a value cannot be stored; nothing was written
    SCHEMA = "schema"  # a table or column is missing


# Lock wait timeout, deadlock, "record has changed since last read" (MariaDB's snapshot isolation). After 1205 InnoDB
# keeps the rest of the transaction open: whoever runs it again has to roll back first.
_AGAIN = {1205, 1213, 1020}

_UNAVAILABLE = {
    1021,  # disk full
    1040,  # too many connections
    1041,  # out of memory
    1047,  # Galera: node not ready
    1053,  # server shutdown in progress
    1114,  # table full
    1129,  # host blocked
    1158, 1159, 1160, 1161,  # network errors, seen by the server
    1180,  # error during commit
    1203, 1226,  # too many connections of this user
    1290, 1792, 1836,  # read only: a failover is under way
    1317,  # query interrupted
    1927,  # MariaDB: connection killed
    2002, 2003, 2006, 2013, 2014, 2055,  # cannot connect, gone away, lost, out of sync
    3032,  # server in offline mode
    3169,  # session killed
    4031,  # MySQL: idle for too long
}  # fmt: skip

_DATA = {
    1048,  # column cannot be null
    1062,  # duplicate key where none is expected
    1118,  # row too large
    1153, 1162, 1301,  # larger than max_allowed_packet
    1264, 1265, 1292, 1300, 1366, 1406,  # out of range, truncated, not UTF-8, too long
    1690,  # BIGINT out of range
    3140, 3141, 3143, 3144, 3156, 3157,  # JSON
}  # fmt: skip

_SCHEMA = {1054, 1146}


def meaning(error: BaseException) -> Meaning | None:
    """None: not an error of the database's, or a bug of ours; it goes up as it is."""
    if isinstance(error, CollisionError):
        return Meaning.AGAIN
    if isinstance(error, UnicodeEncodeError):
        return Meaning.DATA
    if isinstance(error, OSError | EOFError | asyncio.TimeoutError | err.InterfaceError):
        return Meaning.UNAVAILABLE
    if not isinstance(error, err.Error):
        return None
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    for codes, what in (
        (_AGAIN, Meaning.AGAIN),
        (_UNAVAILABLE, Meaning.UNAVAILABLE),
        (_DATA, Meaning.DATA),
        (_SCHEMA, Meaning.SCHEMA),
    ):
        if code in codes:
            return what
    if isinstance(error, err.DataError):
        return Meaning.DATA
    # "Packet sequence number wrong": what arrived is no answer to what was asked; the connection is lost.
    return Meaning.UNAVAILABLE if isinstance(error, err.InternalError) and code == 0 else None


def translate(error: Exception) -> Exception:
    """The error of Edda's that says the same; the error itself where none does."""
    if isinstance(error, EddaError):
        return error
    what = meaning(error)
    if what is Meaning.UNAVAILABLE:
        return StorageUnavailableError(
            f"MySQL did not answer: {error}. The outcome is unknown; send it again."
        )
    if what is Meaning.DATA:
        return StorageDataError(f"MySQL refuses a value: {error}. Nothing was written.")
    if what is Meaning.SCHEMA:
        return SchemaError(
            f"MySQL lacks a table or column: {error}. Nothing was written; run 'edda migrate'."
        )
    return error
