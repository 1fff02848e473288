"""Which events a publisher takes, and under which name: checked alike for every transport."""

from __future__ import annotations

from collections.abc import Sequence

from edda.errors import ConfigurationError
from edda.inbox.shapes import patterns_of, validate_pattern

_LONGEST_DESTINATION = 255


class Route:
    """The part that all publishers share. Raises ConfigurationError, naming the setting and a value that works."""

    def __init__(
        self, who: str, destination: str, types: Sequence[str], publish_timeout: float, concurrency: int
    ) -> None:
        if not 0 < len(destination.encode()) <= _LONGEST_DESTINATION:
            msg = (
                f"{who}: destination={destination!r} must have 1 to {_LONGEST_DESTINATION} bytes, e.g. 'bank'"
            )
            raise ConfigurationError(msg)
        if publish_timeout <= 0 or concurrency < 1:
            msg = (
                f"{who}: publish_timeout={publish_timeout:g} must be above 0 (10 is usual) and "
                f"concurrency={concurrency} at least 1 (64 is usual)"
            )
            raise ConfigurationError(msg)
        if isinstance(types, str):
            msg = f"{who}: types={types!r} must be a list of patterns, for example types=[{types!r}]"
            raise ConfigurationError(msg)
        for pattern in types:
            validate_pattern(pattern)
        self.destination = destination
        self.publish_timeout = publish_timeout
        self.concurrency = concurrency
        self._who = who
        self._types = frozenset(types)

    def __repr__(self) -> str:
        """Without addresses, which may hold a secret."""
        return f"<{self._who} {self.destination}>"

    def takes(self, event_type: str) -> bool:
        """Whether events of this type go there."""
        return not self._types.isdisjoint(patterns_of(event_type))
