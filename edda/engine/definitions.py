"""Which code runs which instance: by name, and by version for those that were started on one.

An instance that was started on a version runs on that version only; without a version, on whatever code is there. Of
several versions of a name the last one given is current: new runs are started on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from edda.engine.host import WorkflowDefinition


class Definitions:
    """What a worker has, in the order given."""

    def __init__(self, definitions: Iterable[WorkflowDefinition] = ()) -> None:
        self._exact: dict[tuple[str, str | None], WorkflowDefinition] = {}
        self._current: dict[str, WorkflowDefinition] = {}
        for definition in definitions:
            self._exact[definition.name, definition.version] = definition
            self._current[definition.name] = definition

    @property
    def names(self) -> list[str]:
        """Instances without a version are claimed by these."""
        return sorted(self._current)

    @property
    def versions(self) -> list[tuple[str, str]]:
        """Instances with one are claimed by these."""
        return sorted((name, version) for name, version in self._exact if version is not None)

    def of(self, name: str, version: str | None) -> WorkflowDefinition:
        """The code for an instance that was claimed, or is started, here."""
        return self._exact.get((name, version)) or self._current[name]

    def current_version(self, name: str) -> str | None:
        """On which version a new run is started."""
        return self._current[name].version
