"""What a driver's error means for the transaction that met it."""

from __future__ import annotations

from enum import Enum

import asyncpg

from edda.errors import EddaError, SchemaError, StorageDataError, StorageUnavailableError


class Meaning(Enum):
    """What to do."""

    AGAIN = "again"  # run the whole transaction again: nothing of it was written
    UNAVAILABLE = "unavailable"  # whether it committed is unknown
    DATA = "data"  # a value cannot be stored; nothing was written
    SCHEMA = "schema"  # a table, column or function is missing


# By SQLSTATE, or by its class of two letters where the state itself is not named.
_MEANINGS = {
    "40001": Meaning.AGAIN,  # serialization failure
    "40P01": Meaning.AGAIN,  # deadlock
    "55P03": Meaning.AGAIN,  # lock_timeout
    "08": Meaning.UNAVAILABLE,  # connection lost
    "25006": Meaning.UNAVAILABLE,  # read only: a failover is under way
    "25P03": Meaning.UNAVAILABLE,  # idle in transaction for too long
    "25P04": Meaning.UNAVAILABLE,  # transaction_timeout
    "26000": Meaning.UNAVAILABLE,  # a prepared statement is gone: the session is another one
    "28": Meaning.UNAVAILABLE,  # a password is being changed
    "3D000": Meaning.UNAVAILABLE,  # the database is being restored
    "40003": Meaning.UNAVAILABLE,  # statement completion unknown
    "53": Meaning.UNAVAILABLE,  # disk full, out of memory, too many connections
    "55000": Meaning.UNAVAILABLE,  # "database is not accepting connections"
    "57": Meaning.UNAVAILABLE,  # shutdown, crash, canceled (statement_timeout)
    "58": Meaning.UNAVAILABLE,  # input or output error
    "22": Meaning.DATA,  # too long, out of range, not in the encoding (NUL)
    "23": Meaning.DATA,  # a key is taken where none should be, NULL
    "54": Meaning.DATA,  # larger than an index entry or a row may be
    "42P01": Meaning.SCHEMA,  # undefined table
    "42703": Meaning.SCHEMA,  # undefined column
    "42883": Meaning.SCHEMA,  # undefined function
    "3F000": Meaning.SCHEMA,  # undefined schema
}

#: Keys that the accept lock should have protected: somebody inserted what was not there a moment ago.
_RACED = {"edda_identities_pkey", "edda_source_positions_pkey"}


def is_repeated_record(error: BaseException) -> bool:
    """True if a record of a flush exists already."""
    return (
        isinstance(error, asyncpg.UniqueViolationError)
        and getattr(error, "constraint_name", None) == "edda_history_pkey"
    )


def is_lock_timeout(error: BaseException) -> bool:
    """True if another transaction has held a lock for longer than ``lock_timeout``."""
    return isinstance(error, asyncpg.LockNotAvailableError)


def meaning(error: BaseException) -> Meaning | None:
    """None: not an error of the database's, or a bug of ours; it goes up as it is."""
    if isinstance(error, asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError):
        return Meaning.AGAIN  # a migration has changed what the statement was prepared for
    if isinstance(error, asyncpg.PostgresError):
        if getattr(error, "constraint_name", None) in _RACED:
            return Meaning.AGAIN
        state = error.sqlstate or ""
        return _MEANINGS.get(state) or _MEANINGS.get(state[:2])
    if isinstance(error, asyncpg.DataError | UnicodeEncodeError):
        return Meaning.DATA  # refused by the driver: a number out of range, text that has no UTF-8 form
    if isinstance(
        error, OSError | EOFError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError
    ):
        return Meaning.UNAVAILABLE
    return None


def translate(error: BaseException) -> BaseException:
    """The error of Edda's that says the same; the error itself where none does."""
    if isinstance(error, EddaError):
        return error
    what = meaning(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if what is Meaning.UNAVAILABLE:
        return StorageUnavailableError(
            f"PostgreSQL did not answer: {text}. The outcome is unknown; send it again."
        )
    if what is Meaning.DATA:
        return StorageDataError(f"PostgreSQL refuses a value: {text}. Nothing was written.")
    if what is Meaning.SCHEMA:
        return SchemaError(
            f"PostgreSQL lacks a table, column or function: {text}. Nothing was written; run 'edda migrate'."
        )
    return error
