"""Databases that have Edda's schema already: migrated once a run, then copied, because most tests begin there.

What is copied is what the migrations have made. On kept servers the templates of several versions lie side by side:
their names carry a digest of everything that makes the schema.
"""

import hashlib
import json
import shutil
import uuid
from functools import cache
from importlib.resources import files
from pathlib import Path

import sqlalchemy as sa

from edda.storage.connect import open_store
from tests.support import run, servers
from tests.support.servers import ServerKind


def sqlite_file(path: Path) -> None:
    """Put a copy of the migrated file there."""
    template = run.directory() / "prepared.db"
    with run.lock("prepared-sqlite"):
        if not template.exists():
            making = template.with_suffix(".making")
            servers.run_apart(lambda: _migrate(f"sqlite:///{making}"))
            making.rename(template)
    shutil.copyfile(template, path)


def postgresql_template(admin_url: str) -> str:
    """The name of a migrated database that CREATE DATABASE can copy."""
    name = f"edda_prepared_{_digest()}"
    with run.lock("prepared-postgresql"):
        known = run.directory() / "prepared-postgresql"
        if not known.exists():
            servers.run_apart(lambda: _make_template(admin_url, name))
            known.touch()
    return name


def mysql_statements(kind: ServerKind, admin_url: str) -> list[str]:
    """The statements that make the tables and rows of a migrated database, each table with its indexes at once."""
    known = run.directory() / f"prepared-{kind}.json"
    with run.lock(f"prepared-{kind}"):
        if not known.exists():
            known.write_text(json.dumps(servers.run_apart(lambda: _read_statements(admin_url))))
    statements: list[str] = json.loads(known.read_text())
    return statements


@cache
def _digest() -> str:
    storage = Path(str(files("edda.storage")))
    sources = [storage / "schema.py", *storage.glob("migrations/**/*.py"), *storage.glob("postgresql/*.sql")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:16]


async def _migrate(url: str) -> None:
    store = open_store(url)
    await store.open()
    await store.migrate()
    await store.close()


async def _make_template(admin_url: str, name: str) -> None:
    making = f"{name}_{uuid.uuid4().hex[:8]}"
    engine = servers.engine(admin_url)
    async with engine.connect() as connection:
        exists = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
        if (await connection.execute(exists, {"name": name})).scalar():
            return
        await connection.execute(sa.text(f"CREATE DATABASE {making}"))
        await _migrate(sa.make_url(admin_url).set(database=making).render_as_string(hide_password=False))
        try:
            await connection.execute(sa.text(f"ALTER DATABASE {making} RENAME TO {name}"))
        except sa.exc.DBAPIError:  # another run on this server was faster
            await connection.execute(sa.text(f"DROP DATABASE {making} WITH (FORCE)"))


async def _read_statements(admin_url: str) -> list[str]:
    name = f"edda_{uuid.uuid4().hex}"
    admin = servers.engine(admin_url)
    async with admin.connect() as connection:
        await connection.execute(sa.text(f"CREATE DATABASE {name}"))
        url = sa.make_url(admin_url).set(database=name).render_as_string(hide_password=False)
        await _migrate(url)
        statements = []
        async with servers.engine(url).connect() as inside:
            for (table,) in (await inside.execute(sa.text("SHOW TABLES"))).all():
                created = (await inside.execute(sa.text(f"SHOW CREATE TABLE {table}"))).one()
                statements.append(created[1])
                for row in (await inside.execute(sa.text(f"SELECT * FROM {table}"))).all():
                    values = ", ".join(
                        f"'{value}'" if isinstance(value, str) else str(value) for value in row
                    )
                    statements.append(f"INSERT INTO {table} VALUES ({values})")
        await connection.execute(sa.text(f"DROP DATABASE {name}"))
    return statements
