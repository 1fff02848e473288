"""The SQL of this store: only what MySQL and MariaDB both take, and values that arrive as they were."""

import ast
import re
from pathlib import Path

import aiomysql
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edda.storage.mysql
from edda.storage.mysql.connection import Link
from edda.storage.mysql.statements import Statement, insert, literal
from edda.storage.mysql.store import MySQLStore
from tests.storage.mysql import on

_PACKAGE = Path(edda.storage.mysql.__file__).parent
_DENIED = {
    "RETURNING (MySQL has none)": r"\bRETURNING\b",
    "FOR SHARE (MariaDB has none)": r"\bFOR\s+SHARE\b",
    "FOR UPDATE OF (MariaDB has none)": r"\bFOR\s+UPDATE\s+OF\b",
    "a row alias (MariaDB has none)": r"\bAS\s+new\b",
    "VALUES() in an update (MySQL warns)": r"\bUPDATE\b.*=\s*VALUES\s*\(",
    "INSERT IGNORE (cuts values silently)": r"\bINSERT\s+IGNORE\b",
    "LATERAL (MariaDB has none)": r"\bLATERAL\b",
    "EXCEPT, INTERSECT (MySQL 8.0 has none)": r"\b(EXCEPT|INTERSECT)\b",
}


def _texts(source: str) -> list[str]:
    """All string constants that are no docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def _denied(text: str) -> list[str]:
    return [why for why, pattern in _DENIED.items() if re.search(pattern, text, re.IGNORECASE | re.DOTALL)]


def test_every_statement_is_one_that_mysql_and_mariadb_take() -> None:
    texts = [text for path in _PACKAGE.glob("*.py") for text in _texts(path.read_text())]
    assert sum("SELECT" in text for text in texts) > 15, "the statements were not found"
    assert {text: why for text in texts if (why := _denied(text))} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "INSERT INTO t VALUES (1) RETURNING id",
        "SELECT 1 FROM t FOR SHARE",
        "SELECT 1 FROM t FOR UPDATE OF t",
        "INSERT INTO t VALUES (1) AS new ON DUPLICATE KEY UPDATE a = new.a",
        "INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = VALUES(a)",
        "INSERT IGNORE INTO t VALUES (1)",
        "SELECT 1 FROM t, LATERAL (SELECT 2) u",
        "SELECT 1 EXCEPT SELECT 2",
    ],
)
def test_the_check_finds_what_it_is_there_for(planted: str) -> None:
    assert len(_denied(_texts(f"x = {planted!r}")[0])) == 1


_TRICKY = ["", "'", "\\", "\\'", "''", "\0", "%", "%s", ";", "--", "/*", "\n\r\x1a", "é", "日本", "🚀", "\\%"]


async def test_values_come_back_as_they_were(link: Link) -> None:
    values = [*_TRICKY, *(text.encode() for text in _TRICKY), bytes(range(256)), 0, -(2**63), 2**63 - 1, None]
    query = f"SELECT {', '.join(['%s'] * len(values))}"
    assert list((await on.rows(link, query, *values))[0]) == values


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_no_value_ends_its_literal(values: list[bytes | str]) -> None:
    for value in values:
        text = literal(value)
        body = text[text.index(b"'") + 1 : -1]
        # What is left after the escapes has no quote that could end the string, and no backslash that could hide one.
        assert not re.search(rb"['\\]", body.replace(b"\\\\", b"").replace(b"\\'", b""))


def test_a_lone_surrogate_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        literal("\ud800")


def test_rows_are_split_so_that_no_statement_is_too_large() -> None:
    rows = [(number, b"x" * 90) for number in range(10)]
    statements = [one.render() for one in insert("INSERT INTO t VALUES", "(%s, %s)", rows, 300)]
    assert len(statements) == 5
    assert all(len(statement) < 300 for statement in statements)
    assert sum(statement.count(b"_binary") for statement in statements) == 10


def test_a_row_larger_than_the_limit_goes_by_itself() -> None:
    statements = list(insert("INSERT INTO t VALUES", "(%s)", [(b"x" * 500,), (b"y",)], 100))
    assert len(statements) == 2


def test_a_statement_renders_its_values_in_order() -> None:
    assert Statement("SELECT %s, %s", (1, "a'b")).render() == rb"SELECT 1, 'a\'b'"


async def test_every_packet_that_is_sent_is_counted(
    store: MySQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = 0
    execute = aiomysql.Connection._execute_command

    async def counting(connection: object, command: int, sql: object) -> None:
        nonlocal packets
        packets += 1
        await execute(connection, command, sql)

    await store.flush([on.start("order")])
    monkeypatch.setattr(aiomysql.Connection, "_execute_command", counting)
    before = store.statements
    await store.flush([on.step("order", 2)])
    assert packets == store.statements - before == 2
    await store.flush([on.park("order", 3, "key")])
    await store.accept(on.batch("b", on.event("e", "key")))
    await store.claim(on.APP, ["order"], on.WORKER, 1)
    await store.load(["order"])
    await store.poll(on.APP)
    assert packets == store.statements - before
