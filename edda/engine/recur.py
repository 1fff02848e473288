"""What a run hands to the one that goes on in its place."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_core import from_json, to_json

from edda.engine.outcome import RecurError


def encode_carried(previous: str, cursors: dict[bytes, int], received: Iterable[int]) -> bytes:
    """Where the chain has come to: per kind of wait the last event received; of a keyed run all that were."""
    return to_json(
        {
            "previous": previous,
            "cursors": {key.hex(): seq for key, seq in cursors.items()},
            "received": sorted(received),
        }
    )


def decode_carried(carried: bytes | None) -> tuple[dict[bytes, int], set[int]]:
    """Cursors, and the events received."""
    if carried is None:
        return {}, set()
    described = from_json(carried)
    cursors = {bytes.fromhex(key): seq for key, seq in described["cursors"].items()}
    return cursors, set(described["received"])


def recurred_output(recur: RecurError, next_id: str) -> bytes:
    """The output of the run that ended: its successor's arguments and id."""
    return to_json({"recur_kwargs": from_json(recur.input), "continued_as": next_id})
