"""Migrations: Alembic's, in a version table of their own, re-runnable step by step, under a lock.

Ten processes may start at once, in a database that already holds the user's tables.
"""

from edda.storage.migrations.run import check_schema, include_object, migrate_connection, migration_sql

__all__ = ["check_schema", "include_object", "migrate_connection", "migration_sql"]
