"""Every error of Edda: one base, a stable code, the facts as attributes, and a way out in the message.

A message says, in this order: where, what was refused, with which values, what is safe, what to do.
"""

from __future__ import annotations

from typing import ClassVar


class EddaError(Exception):
    """Base of all errors raised by Edda itself. ``code`` is stable and may be matched on."""

    code: ClassVar[str] = "EDDA000"

    def __str__(self) -> str:
        """``[code] message``."""
        return f"[{self.code}] {super().__str__()}"


class ConfigurationError(EddaError, ValueError):
    """A setting or a declaration is wrong; nothing was started and nothing was written."""

    code = "EDDA100"


class MissingExtraError(ConfigurationError):
    """A driver or client library of an optional extra is not installed."""

    code = "EDDA101"

    def __init__(self, what: str, extra: str) -> None:
        self.what, self.extra = what, extra
        super().__init__(
            f"{what} needs the extra {extra!r}, which is not installed. "
            f"Install it from the checkout: pip install '.[{extra}]'"
        )


class StorageError(EddaError):
    """The database refused or failed."""

    code = "EDDA200"


class StorageUnavailableError(StorageError):
    """The database did not answer: whether the transaction committed is unknown.

    Every transaction of Edda may be sent again with the same input; the engine does so with backoff.
    """

    code = "EDDA201"


class StorageDataError(StorageError):
    """The database refuses a value of the batch (too long, too large, not storable).

    Nothing of the batch was written. The caller halves the batch until the culprit is alone.
    """

    code = "EDDA202"


class StaleRoutingError(StorageError):
    """The routing table (shapes, triggers) changed since the batch was computed; nothing was written.

    The caller reads the routing table again and recomputes the batch.
    """

    code = "EDDA203"


class SchemaError(StorageError):
    """The database's schema is missing, older or newer than this version of Edda needs."""

    code = "EDDA204"


class OwnershipLostError(EddaError):
    """Another worker owns the instance now; this worker's writes were refused and nothing was written."""

    code = "EDDA210"

    def __init__(self, instance_id: str, fence: int) -> None:
        self.instance_id, self.fence = instance_id, fence
        super().__init__(
            f"instance {instance_id!r}: a write with fence {fence} was refused, because another worker took over "
            "after this worker's lease had ended. Nothing was written; the run goes on there. If this repeats, "
            "look for code that blocks the event loop, or raise lease_seconds."
        )


class InstanceExistsError(EddaError):
    """An instance with the chosen id, idempotency key or live key exists already; nothing was started."""

    code = "EDDA211"


class InstanceNotFoundError(EddaError, LookupError):
    """No instance has this id (or it was removed by retention)."""

    code = "EDDA212"


class PayloadError(EddaError, ValueError):
    """A value cannot be stored: it has no JSON form, or is too large. Nothing was written."""

    code = "EDDA220"


class NonDeterminismError(EddaError):
    """The code does not do again what the history says it did; the instance is paused for a code fix."""

    code = "EDDA230"


class TransactionError(EddaError, RuntimeError):
    """Something was asked of a transaction that is not open, or must not wait inside one."""

    code = "EDDA240"


class NotRunningError(EddaError, RuntimeError):
    """The app is not initialised (or is shut down); call ``await app.initialize()`` first."""

    code = "EDDA250"
