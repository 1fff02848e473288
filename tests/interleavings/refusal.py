"""A database that refuses one value: what a DBA's constraint, or a limit nobody thought of, does to a batch."""

import sqlalchemy as sa

from tests.interleavings.raw import Raw


async def refuse(raw: Raw, column: sa.Column[str], value: str) -> None:
    """From now on no row can be inserted that has this value in this column."""
    table = column.table.name
    where = f"NEW.{column.name} = '{value}'"
    why = f"{column.name} {value} is not welcome here"
    if raw.kind == "sqlite":
        statements = [
            f"CREATE TRIGGER refusal BEFORE INSERT ON {table} WHEN {where} BEGIN SELECT RAISE(ABORT, '{why}'); END"
        ]
    elif raw.kind == "postgresql":
        raising = f"RAISE EXCEPTION '{why}' USING ERRCODE = 'check_violation'"
        statements = [
            f"CREATE FUNCTION refusal() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {raising}; END$$",
            f"CREATE TRIGGER refusal BEFORE INSERT ON {table} FOR EACH ROW WHEN ({where}) EXECUTE FUNCTION refusal()",
        ]
    else:
        signal = f"SIGNAL SQLSTATE '22001' SET MYSQL_ERRNO = 1406, MESSAGE_TEXT = '{why}'"
        statements = [
            f"CREATE TRIGGER refusal BEFORE INSERT ON {table} FOR EACH ROW IF {where} THEN {signal}; END IF"
        ]
    async with raw.transaction() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
