"""What an error of SQLite's means for the transaction that met it."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from enum import Enum
from pathlib import Path

import sqlalchemy as sa

from edda.errors import (
    ConfigurationError,
    EddaError,
    SchemaError,
    StorageDataError,
    StorageError,
    StorageUnavailableError,
)


class Meaning(Enum):
    """What to do."""

    AGAIN = "again"  # nothing was written; run the whole transaction again
    UNAVAILABLE = "unavailable"  # the file cannot be used now
    DATA = "data"  # a value cannot be stored; nothing was written
    SCHEMA = "schema"  # a table, column or index is missing


_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}

#: Codes, and what to do about them.
_REMEDIES = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable for this process",
    sqlite3.SQLITE_PERM: "make the file and its directory writable for this process",
    sqlite3.SQLITE_CANTOPEN: "make the file and its directory readable and writable for this process, and look whether "
    "it has too many files open",
    sqlite3.SQLITE_IOERR: "look at its disk and its file system (and at the system's log)",
    sqlite3.SQLITE_NOLFS: "move it to a file system that takes large files",
    sqlite3.SQLITE_NOMEM: "give the process more memory",
    sqlite3.SQLITE_CORRUPT: "stop all processes that use it, look at it with 'PRAGMA integrity_check', and restore a "
    "backup if that finds anything",
    sqlite3.SQLITE_NOTADB: "name another file: this one is not a SQLite database",
}

_DATA = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
    sqlite3.SQLITE_TOOBIG,
}


_MISSING = re.compile(r"no such (table|column|index)\b")


def driver_error(error: BaseException) -> BaseException:
    """What the driver raised, also where SQLAlchemy has wrapped it."""
    if isinstance(error, sa.exc.StatementError) and error.orig is not None:
        return error.orig
    return error


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds the lock."""
    return _code(error) in _BUSY


def meaning(error: BaseException) -> Meaning | None:
    """None: not an error of SQLite's, or a bug of ours; it goes up as it is."""
    error = driver_error(error)
    # Integers beyond 64 bits, text without a UTF-8 form, what is too large.
    if isinstance(error, OverflowError | UnicodeEncodeError | sqlite3.DataError):
        return Meaning.DATA
    # Values of a type that SQLite does not know.
    if isinstance(error, sqlite3.ProgrammingError) and "binding parameter" in str(error):
        return Meaning.DATA
    code = _code(error)
    if code in _BUSY:
        return Meaning.AGAIN
    if code in _REMEDIES:
        return Meaning.UNAVAILABLE
    if code in _DATA:
        return Meaning.DATA
    if code == sqlite3.SQLITE_ERROR and _MISSING.match(str(error)):
        return Meaning.SCHEMA
    return None


def translate(error: BaseException) -> BaseException:
    """The error of Edda's that says the same; the error itself where none does."""
    if isinstance(error, EddaError):
        return error
    what = meaning(error)
    cause = driver_error(error)
    if what is Meaning.AGAIN:
        return StorageUnavailableError(
            f"SQLite: {cause}: another process, or an open ctx.session, has held the file's write lock all the time. "
            "Nothing was written; it may be sent again. If it repeats, look for a process that is stopped in the "
            "middle of a transaction."
        )
    if what is Meaning.UNAVAILABLE:
        return StorageUnavailableError(
            f"SQLite: {cause}. Whether this transaction was committed is unknown; it may be sent again. To do: "
            f"{_REMEDIES[_code(cause)]}."
        )
    if what is Meaning.DATA:
        return StorageDataError(f"SQLite refuses a value: {cause}. Nothing was written.")
    if what is Meaning.SCHEMA:
        return SchemaError(f"SQLite: {cause}. Nothing was written; run 'edda migrate'.")
    return error


def cannot_open(path: Path, error: sqlite3.Error) -> StorageError | ConfigurationError:
    """Why a file cannot be opened for writing: a mistake that waiting does not mend, or trouble that may pass."""
    code = _code(error)
    directory = path.parent
    why = None
    if code == sqlite3.SQLITE_NOTADB:
        why = "it is not a SQLite database; name another file"
    elif code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        if not directory.exists():
            why = f"its directory does not exist; create it (mkdir -p '{directory}'), or name another"
        elif not directory.is_dir():
            why = f"'{directory}' is not a directory; name another"
        elif path.is_dir():
            why = "it is a directory; name a file"
        elif not os.access(directory, os.W_OK | os.X_OK):
            why = f"its directory '{directory}' is not writable for this process; make it so, or name another"
        elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
            why = "it is not readable and writable for this process; make it so"
        elif code == sqlite3.SQLITE_READONLY:
            why = "it is opened read-only; open it for writing (a 'mode=ro' or 'immutable=1' in the URL?)"
        elif not path.exists() and not _can_create(directory):
            why = f"no file can be created in '{directory}'; name another"
    if why is None:
        translated = translate(error)
        return translated if isinstance(translated, StorageError) else StorageUnavailableError(str(error))
    return ConfigurationError(
        f"the SQLite database '{path}' cannot be opened ({error}): {why}. Nothing was written."
    )


def _can_create(directory: Path) -> bool:
    """Root may write everywhere by the permissions' word, but not on every file system."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return False
    return True


def _code(error: BaseException) -> int:
    """The primary result code; 0 for what is none of SQLite's."""
    code = getattr(driver_error(error), "sqlite_errorcode", None)
    return 0 if code is None else int(code) & 0xFF
