"""Alembic's environment: a connection that is open already, or a dialect to print for."""

from alembic import context

from edda.storage.migrations.run import VERSION_TABLE
from edda.storage.schema import metadata

config = context.config
connection = config.attributes.get("connection")
if connection is not None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        # The caller's transaction and lock are around it already.
        transaction_per_migration=False,
    )
    context.run_migrations()
else:
    context.configure(
        dialect_name=config.attributes["dialect"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()
