"""When a failed activity is tried again: policies, presets, and the two errors that end the trying."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edda.errors import EddaError


class TerminalError(EddaError):
    """Raised by an activity: do not try again; the workflow gets this error itself."""

    code = "EDDA301"

    def __str__(self) -> str:
        """The user's own message, without a code."""
        return Exception.__str__(self)


class RetryExhaustedError(EddaError):
    """An activity failed as often as its policy allows; ``__cause__`` is the last error."""

    code = "EDDA302"

    def __str__(self) -> str:
        """The message without a code, as ``edda-framework 0.16`` gave it."""
        return Exception.__str__(self)


class ActivityTimeoutError(EddaError, TimeoutError):
    """An attempt took longer than its activity's ``timeout_seconds``; it counts as failed, and is tried again."""

    code = "EDDA303"

    def __init__(self, activity: str, timeout_seconds: float) -> None:
        self.activity, self.timeout_seconds = activity, timeout_seconds
        super().__init__(
            f"activity {activity!r} did not end within {timeout_seconds:g} s; the attempt was cancelled"
        )


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when an activity is tried again. Intervals and durations are seconds.

    ``max_attempts`` and ``max_duration`` of None mean no limit; a negative answer of either ends the trying.
    """

    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    max_interval: float = 60.0
    max_attempts: int | None = 5
    max_duration: float | None = 300.0
    retryable_error_types: tuple[type[BaseException], ...] = (Exception,)
    non_retryable_error_types: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could never work."""
        if self.max_attempts is not None and self.max_attempts < 1:
            msg = f"RetryPolicy.max_attempts={self.max_attempts} means never; use 1 for one try without retry"
            raise ValueError(msg)
        if self.initial_interval < 0 or self.max_interval < 0 or self.backoff_coefficient <= 0:
            msg = "RetryPolicy: intervals must not be negative and backoff_coefficient must be above 0"
            raise ValueError(msg)

    def calculate_delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1)."""
        try:
            delay = self.initial_interval * self.backoff_coefficient ** (attempt - 1)
        except OverflowError:
            return self.max_interval
        return min(delay, self.max_interval)

    def is_retryable(self, error: BaseException) -> bool:
        """Whether this error is worth another try at all."""
        if isinstance(error, (TerminalError, *self.non_retryable_error_types)):
            return False
        return isinstance(error, self.retryable_error_types)


@dataclass
class RetryMetadata:
    """What became of the attempts of one activity."""

    total_attempts: int = 0
    total_duration_ms: int = 0
    exhausted: bool = False
    errors: list[dict[str, Any]] = field(default_factory=list)
    last_error: dict[str, Any] | None = None


DEFAULT_RETRY_POLICY = RetryPolicy()
AGGRESSIVE_RETRY = RetryPolicy(0.1, 1.5, 10.0, 10, 60.0)
CONSERVATIVE_RETRY = RetryPolicy(5.0, 2.0, 300.0, 3, 900.0)
INFINITE_RETRY = RetryPolicy(1.0, 2.0, 60.0, None, None)
