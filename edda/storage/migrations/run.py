"""Run the migrations on an open connection, or print them."""

from __future__ import annotations

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

VERSION_TABLE = "edda_alembic_version"
_FOLDER = Path(str(files("edda.storage.migrations")))

#: Any number, the same for all: migrations take their turn.
_LOCK = 0x45444441_0002


def _config(output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate_connection(c: sa.Connection, name: str) -> None:
    """Bring the schema up to date under the database's migration lock."""
    unlock = _lock(c, name)
    try:
        current = _current(c)
        scripts = ScriptDirectory.from_config(_config())
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
        got = c.execute(sa.text("SELECT GET_LOCK(CONCAT(DATABASE(), '.edda_migrate'), 120)")).scalar()
        if got != 1:
            msg = (
                "another process has been migrating this database for two minutes; look at it, then try again"
            )
            raise SchemaError(msg)
        return sa.text("SELECT RELEASE_LOCK(CONCAT(DATABASE(), '.edda_migrate'))")
    return None


def _functions(c: sa.Connection) -> None:
    script = _FOLDER.parent / "postgresql" / "functions.sql"
    if script.exists():
        for statement in script.read_text().split("\n-- next --\n"):
            c.exec_driver_sql(statement)


def _current(c: sa.Connection) -> str | None:
    context = MigrationContext.configure(c, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def check_schema(c: sa.Connection) -> None:
    """For those who may not run DDL: raises SchemaError unless the schema is exactly this version's."""
    current, head = _current(c), ScriptDirectory.from_config(_config()).get_current_head()
    if current is None:
        msg = (
            "this database has no Edda schema yet; run 'edda migrate' (or 'edda migrate --sql' and apply it)"
        )
        raise SchemaError(msg)
    if current != head:
        raise _newer(current)


def _newer(current: str) -> SchemaError:
    return SchemaError(
        f"the database's schema is at revision {current!r}, which this version of Edda does not know. Nothing was "
        "changed. Upgrade Edda in this process to the version that migrated the database."
    )


def migration_sql(dialect_url: str) -> str:
    """All statements for an empty database, for ``edda migrate --sql``."""
    output = io.StringIO()
    config = _config(output)
    name = sa.make_url(dialect_url).get_backend_name()
    config.attributes["dialect"] = {"postgres": "postgresql", "mariadb": "mysql"}.get(name, name)
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


def include_object(object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """For the ``include_object`` of your own Alembic ``env.py``: autogenerate then leaves ``edda_*`` tables alone."""
    del object, reflected, compare_to
    return not (type_ == "table" and name is not None and name.startswith("edda_"))
