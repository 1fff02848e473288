"""What a measurement says."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.databases import Kind


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. Costs are per item (workflow, event); None where they could not be read.

    ``value`` is what the budget speaks of; ``budget`` None: nobody has promised anything.
    """

    workload: str
    database: Kind
    value: float
    unit: str
    items: int = 0  # how many the value was measured on; counted in the database
    lower_is_better: bool = False
    budget: float | None = None
    client_ms: float | None = None  # CPU of the measuring process
    server_ms: float | None = None  # CPU of the whole database server, whoever else uses it
    statements: float | None = None
    flushes: float | None = None
    resident_mib: float | None = None  # of the measuring process, at the end
    engine: str = "edda"

    @property
    def ratio(self) -> float | None:
        """1 or more: within the budget."""
        if self.budget is None:
            return None
        if self.lower_is_better:
            # Nothing at all is as good as it gets, not infinitely better than the budget.
            return self.budget / max(self.value, self.budget / 100)
        return self.value / self.budget
