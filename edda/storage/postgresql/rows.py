"""Rows as columns: what functions take is one array per column, and what they answer becomes rows again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edda.storage.postgresql.connection import Row
from edda.storage.rows import EventRow, NewInstance

#: Arrays for a function, by the names of its arguments.
Arguments = dict[str, list[Any]]

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $1::bigint"

#: The one time of a plain statement, as a CTE; the clock's offset is its first value.
CLOCK = f"clock AS MATERIALIZED (SELECT {_NOW} AS now)"

NOW = f"SELECT {_NOW}"

EVENTS = (
    "SELECT seq, type, source, event_id, attributes, data, content_type, addressee, accepted_at "
    "FROM edda_events WHERE seq = ANY ($1)"
)


def call(function: str, fixed: int, names: Sequence[str] = ()) -> str:
    """The statement that calls a function with that many values by place, and the others by name."""
    values = [f"${number}" for number in range(1, fixed + 1)]
    values += [f"{name} => ${number}" for number, name in enumerate(names, fixed + 1)]
    return f"SELECT * FROM {function}({', '.join(values)})"


def instance_columns(new: Sequence[NewInstance]) -> Arguments:
    """All but n_start_event, which accept does not know yet."""
    return {
        "n_id": [one.id for one in new],
        "n_app": [one.app for one in new],
        "n_workflow": [one.workflow for one in new],
        "n_version": [one.version for one in new],
        "n_owner": [one.owner for one in new],
        "n_chain": [one.chain or one.id for one in new],
        "n_chain_started_at": [one.chain_started_at for one in new],
        "n_live_key": [one.live_key for one in new],
        "n_priority": [one.priority for one in new],
        "n_delay": [one.delay_us for one in new],
        "n_parent": [one.parent for one in new],
        "n_parent_seq": [one.parent_seq for one in new],
        "n_input": [one.input for one in new],
        "n_carried": [one.carried for one in new],
    }


def all_instance_columns(new: Sequence[NewInstance]) -> Arguments:
    """All columns."""
    return {**instance_columns(new), "n_start_event": [one.start_event for one in new]}


def event_row(row: Row) -> EventRow:
    """From the columns of ``EVENTS``."""
    return EventRow(
        seq=row["seq"],
        type=row["type"],
        source=row["source"],
        event_id=row["event_id"],
        attributes=row["attributes"],
        data=row["data"],
        content_type=row["content_type"],
        addressee=row["addressee"],
        accepted_at=row["accepted_at"],
    )


#: Insert instances by themselves; the clock's offset is the first value.
_VALUES = ", ".join(f"{name} => ${number}" for number, name in enumerate(all_instance_columns([]), 3))
INSERT_INSTANCES = f"SELECT o_id FROM edda_insert_1({_NOW}, $2, {_VALUES})"
