"""How long a failed row waits: exponential with full jitter, or what the other side asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds. Attempts are counted in the database, so that a restart forgets none. ``max_attempts`` None: no end."""

    first: float = 0.2
    longest: float = 60.0
    max_attempts: int | None = None

    def delay(self, attempts: int, asked: float | None) -> float:
        """After ``attempts`` that failed before this one.

        Source of full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
        """
        if asked is not None:
            return asked
        ceiling = min(self.longest, self.first * 2 ** min(attempts, 30))
        return random.uniform(ceiling / 10, ceiling)  # noqa: S311, jitter
