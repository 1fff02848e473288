"""What is wanted of each figure, on a machine with two cores. Not a test: a slower machine may miss them all."""

from __future__ import annotations

from tests.support.databases import Kind

#: (workload, database) -> budget; "" is every database.
_BUDGETS: dict[tuple[str, Kind | str], float] = {
    ("five steps, 1 in flight", "postgresql"): 120,
    ("five steps, 50 in flight", "sqlite"): 1_500,
    ("five steps, 50 in flight", "postgresql"): 1_500,
    ("five steps, 50 in flight", "mysql"): 600,
    ("five steps, 50 in flight", "mariadb"): 600,
    ("five steps, 200 in flight", "postgresql"): 2_500,
    ("five steps, 50 in flight: client CPU", ""): 0.4,
    ("five steps, 1 in flight: flushes", ""): 7,
    ("five steps, 50 in flight: flushes", ""): 1.2,  # six turns, fewer than one flush to five of them
    ("parked workflows woken", ""): 2_500,
    ("event to completed, p50", ""): 5,
    ("event to completed, p99", ""): 20,
    ("event to completed elsewhere, p50", "postgresql"): 15,
    ("outbox to HTTP", ""): 3_000,
    ("outbox to Kafka", ""): 8_000,
    ("Kafka to accepted", ""): 10_000,
    ("idle worker", "postgresql"): 0.2,
    ("idle worker", ""): 1,
    ("memory of a parked instance", ""): 500,  # nothing, as closely as it can be seen; a task alone has more
    ("restart over parked instances", ""): 2,
}


def budget(workload: str, database: Kind) -> float | None:
    """The database's own budget, else everybody's, else None."""
    return _BUDGETS.get((workload, database), _BUDGETS.get((workload, "")))
