"""Random numbers and UUIDs that a replay draws again: they follow from the run and from how many were drawn before.

The order of a workflow's own code is the same in every replay, tasks of ``asyncio.gather`` included, and so is the
order of the draws.
"""

from __future__ import annotations

import hashlib
import random
import uuid


class Chance:
    """Of one run. Numbers and UUIDs are drawn apart, so that a new call of the one does not shift the other."""

    __slots__ = ("_random", "_seed", "_uuids")

    def __init__(self, instance_id: str, started_us: int) -> None:
        # With the time, because a chosen id may come again: after retention, or in another database.
        self._seed = f"{instance_id}@{started_us}"
        self._random: random.Random | None = None
        self._uuids = 0

    @property
    def random(self) -> random.Random:
        """The generator of this run, always the same one."""
        if self._random is None:
            self._random = random.Random(f"random {self._seed}")  # noqa: S311, to be had again, not to be secret
        return self._random

    def uuid4(self) -> uuid.UUID:
        """The next UUID."""
        self._uuids += 1
        digest = hashlib.sha256(f"uuid {self._uuids} {self._seed}".encode()).digest()
        return uuid.UUID(bytes=digest[:16], version=4)
