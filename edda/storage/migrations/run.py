"""Run the migrations on an open connection, or print them."""

from __future__ import annotations

import functools
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from edda.errors import SchemaError
from edda.storage.connect import read_url

VERSION_TABLE = "edda_alembic_version"
_FOLDER = Path(str(files("edda.storage.migrations")))

#: Any number, the same for all: migrations take their turn.
_LOCK = 0x45444441_0002

#: Such locks have server-wide names of at most 64 characters; a database's name alone may be that long.
_MYSQL_LOCK = "CONCAT('edda.', SHA2(DATABASE(), 224))"


def _config(output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@functools.cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def migrate_connection(c: sa.Connection, name: str) -> None:
    """Bring the schema up to date under the database's migration lock."""
    unlock = _lock(c, name)
    try:
        current = _current(c)
        scripts = _scripts()
        if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
            raise _newer(current)
        if current != scripts.get_current_head():
            config = _config()
            config.attributes["connection"] = c
            command.upgrade(config, "head")
        if name == "postgresql":
            _functions(c)
    finally:
        if unlock is not None:
            c.execute(unlock)


def _lock(c: sa.Connection, name: str) -> sa.TextClause | None:
    if name == "postgresql":
        c.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    elif name == "mysql":
        # DDL commits by itself on MySQL, so the lock belongs to the session, not to the transaction.
        if c.execute(sa.text(f"SELECT GET_LOCK({_MYSQL_LOCK}, 120)")).scalar() != 1:
            raise SchemaError(
                "another process has been migrating this database for two minutes. Nothing was changed by this one. "
                "Look at the other (SHOW PROCESSLIST), then try again."
            )
        return sa.text(f"SELECT RELEASE_LOCK({_MYSQL_LOCK})")
    return None


def _functions(c: sa.Connection) -> None:
    """Create what is not there. A name carries its version: nothing is replaced, and nothing asked for but at first."""
    names = [name for name, _ in postgresql_functions()]
    wanted = sa.text(
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE p.proname = ANY(:names) AND n.nspname = current_schema()"
    )
    known = set(c.execute(wanted, {"names": names}).scalars())
    for name, statement in postgresql_functions():
        if name not in known:
            c.exec_driver_sql(statement)


def postgresql_functions() -> list[tuple[str, str]]:
    """(name, statement that creates it), in an order in which they can be created."""
    statements = (_FOLDER.parent / "postgresql" / "functions.sql").read_text().split("\n-- next --\n")
    return [
        (statement.split("CREATE FUNCTION ", 1)[1].split("(", 1)[0], statement) for statement in statements
    ]


def _current(c: sa.Connection) -> str | None:
    context = MigrationContext.configure(c, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def check_schema(c: sa.Connection) -> None:
    """For those who may not run DDL: raises SchemaError unless the schema is exactly this version's."""
    current, scripts = _current(c), _scripts()
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise _newer(current)
    what = (
        "has no Edda schema yet"
        if current is None
        else f"has a schema of revision {current!r}, which is older"
    )
    raise SchemaError(
        f"this database {what}. Nothing was changed; run 'edda migrate' (or 'edda migrate --sql' and apply it)."
    )


def _newer(current: str) -> SchemaError:
    return SchemaError(
        f"the database's schema is at revision {current!r}, which this version of Edda does not know. Nothing was "
        "changed. Upgrade Edda in this process to the version that migrated the database."
    )


def migration_sql(dialect_url: str) -> str:
    """All statements for an empty database, for ``edda migrate --sql``. Raises ConfigurationError for no such URL."""
    output = io.StringIO()
    config = _config(output)
    config.attributes["dialect"], _ = read_url(dialect_url)
    command.upgrade(config, "head", sql=True)
    if config.attributes["dialect"] == "postgresql":
        output.writelines(f"\n{statement};\n" for _, statement in postgresql_functions())
    return output.getvalue()


def include_object(object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """For the ``include_object`` of your own Alembic ``env.py``: autogenerate then leaves ``edda_*`` tables alone."""
    del object, reflected, compare_to
    return not (type_ == "table" and name is not None and name.startswith("edda_"))
