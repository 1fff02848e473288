"""What a run hands to the one that goes on in its place."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic_core import from_json, to_json

from edda.engine.outcome import RecurError


@dataclass(slots=True)
class Carried:
    """Where a chain of runs has come to.

    ``cursors``: per kind of wait (its hash) the last event received. ``received``: of a keyed run all that were.
    ``subscriptions``: channel -> mode, and the accept number behind which its messages are seen. ``at``: when the run
    before handed on.
    """

    cursors: dict[bytes, int] = field(default_factory=dict)
    received: set[int] = field(default_factory=set)
    subscriptions: dict[str, tuple[str, int]] = field(default_factory=dict)
    at: int = 0

    def encode(self, previous: str, now_us: int) -> bytes:
        """For the run that follows ``previous``, from now on."""
        return to_json(
            {
                "previous": previous,
                "cursors": {key.hex(): seq for key, seq in self.cursors.items()},
                "received": sorted(self.received),
                "subscriptions": self.subscriptions,
                "at": now_us,
            }
        )

    @classmethod
    def decode(cls, carried: bytes | None) -> Carried:
        """None: the first run of its chain."""
        if carried is None:
            return cls()
        described = from_json(carried)
        return cls(
            {bytes.fromhex(key): seq for key, seq in described["cursors"].items()},
            set(described["received"]),
            {channel: (mode, last) for channel, (mode, last) in described["subscriptions"].items()},
            described["at"],
        )


def recurred_output(recur: RecurError, next_id: str) -> bytes:
    """The output of the run that ended: its successor's arguments and id."""
    return to_json({"recur_kwargs": from_json(recur.input), "continued_as": next_id})
