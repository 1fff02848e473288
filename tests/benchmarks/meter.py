"""What a stretch of work costs: time, CPU here and at the server, statements, flushes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

import psutil

from edda.storage.contract import Storage
from tests.benchmarks.server_cpu import ServerCPU


@dataclass(slots=True)
class Cost:
    """Sums over the stretches that were measured."""

    seconds: float = 0.0
    client_seconds: float = 0.0
    server_seconds: float | None = 0.0
    statements: int = 0
    flushes: int = 0

    def per_item(self, items: int) -> dict[str, float | None]:
        """As a Figure takes it."""
        items = max(items, 1)
        return {
            "client_ms": self.client_seconds * 1_000 / items,
            "server_ms": None if self.server_seconds is None else self.server_seconds * 1_000 / items,
            "statements": self.statements / items,
            "flushes": self.flushes / items,
            "resident_mib": resident_mib(),
        }


class Meter:
    """``with meter:`` around what counts; several times if need be."""

    def __init__(self, store: Storage, server: ServerCPU) -> None:
        self.cost = Cost()
        self._store = store
        self._server = server
        self._at_start: tuple[float, float, float | None, int, int] | None = None

    def __enter__(self) -> Self:
        server = self._server.seconds()
        store = self._store
        self._at_start = (time.perf_counter(), time.process_time(), server, store.statements, store.flushes)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._at_start is not None
        seconds, client, server, statements, flushes = self._at_start
        cost = self.cost
        cost.seconds += time.perf_counter() - seconds
        cost.client_seconds += time.process_time() - client
        cost.statements += self._store.statements - statements
        cost.flushes += self._store.flushes - flushes
        now = self._server.seconds()
        if now is None or server is None or cost.server_seconds is None:
            cost.server_seconds = None
        else:
            cost.server_seconds += now - server


def resident_mib() -> float:
    """This process's resident memory."""
    return float(psutil.Process().memory_info().rss) / 1024**2


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of them lies (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
