"""Invariants that the source and the schema show by themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import edda
from edda.storage.schema import history, outbox, waits

SOURCE = Path(edda.__file__).parent

#: Clocks of this machine, by module and function.
CLOCKS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
}

#: SQLite's database clock is the machine's; an event's ``time`` attribute is its producer's and compared with nothing.
MAY_LOOK = {"storage/sqlite", "storage/core/traits.py", "storage/memory", "outbox/message.py", "cli"}


def clocks_read(source: str) -> list[str]:
    """The calls that read this machine's clock."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in CLOCKS
    ]


def test_one_clock_no_deadline_is_compared_with_the_time_of_this_machine() -> None:
    assert clocks_read("import time\nnow = time.time()") == ["time.time()"]
    found = {
        str(path.relative_to(SOURCE)): calls
        for path in sorted(SOURCE.rglob("*.py"))
        if not any(str(path.relative_to(SOURCE)).startswith(place) for place in MAY_LOOK)
        and (calls := clocks_read(path.read_text()))
    }
    assert found == {}


def test_every_row_of_an_instance_carries_its_id() -> None:
    for table in (history, waits):
        assert next(iter(table.primary_key.columns)).name == "instance_id"
    assert "instance_id" in outbox.columns
