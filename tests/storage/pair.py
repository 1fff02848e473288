"""The oracle and a database, asked the same; and answers without what may differ: wall clocks and row numbers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import unified_diff
from enum import Enum
from pprint import pformat
from typing import Any

from edda.errors import EddaError
from edda.storage.contract import Storage
from edda.storage.rows import InstanceRow, LoadedInstance
from tests.storage.given import HOUR

#: Fields that hold a time. Scripts move the clock by whole hours, so that to the hour both stores have the same.
_TIMES = {
    "accepted_at",
    "began_at",
    "chain_started_at",
    "created_at",
    "deadline_us",
    "ended_at",
    "expires_at",
    "foreign_expiry_us",
    "next_available_us",
    "next_deadline_us",
    "now_us",
    "recorded_at",
    "updated_at",
}


@dataclass
class Side:
    """One of the two."""

    store: Storage
    began: int  # its time at the beginning
    rows: dict[str, int] = field(default_factory=dict)  # id of an event in the outbox -> row
    shapes: dict[str, int] = field(default_factory=dict)  # pattern -> shape

    def plain(self, value: Any, name: str = "") -> Any:
        """An answer, as what can be compared with the other side's."""
        if is_dataclass(value):
            names = [
                one.name for one in fields(value) if (type(value).__name__, one.name) != ("OutboxRow", "id")
            ]
            return {name: self.plain(getattr(value, name), name) for name in names}
        if isinstance(value, Mapping):
            return {key: self.plain(value[key]) for key in sorted(value)}
        if isinstance(value, set | frozenset):
            return sorted(value)
        if isinstance(value, list | tuple):
            return [self.plain(one) for one in value]
        if name in _TIMES and value is not None:
            return round((value - self.began) / HOUR)
        return value.value if isinstance(value, Enum) else value


Call = Callable[[Side], Awaitable[Any]]


def brief(value: object) -> str:
    """A row of the contract in few words: what is not as always."""
    if isinstance(value, list | tuple | dict):
        return f"[{', '.join(brief(one) for one in value)}]"
    if isinstance(value, bytes):
        return value.hex()[:6] if len(value) in {16, 32} else repr(value)
    if isinstance(value, Enum):
        return value.name
    if not is_dataclass(value):
        return repr(value)
    shown = [
        f"{one.name}={brief(getattr(value, one.name))}"
        for one in fields(value)
        if getattr(value, one.name) not in (one.default, None, [], (), b"{}")
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


@dataclass
class Pair:
    """Both, and what the script of a test did to them so far."""

    oracle: Side
    tested: Side
    ids: list[str]
    trace: list[str] = field(default_factory=list)
    instances: dict[str, InstanceRow] = field(default_factory=dict)
    loaded: dict[str, LoadedInstance] = field(default_factory=dict)

    @classmethod
    async def of(cls, oracle: Storage, tested: Storage, ids: list[str]) -> Pair:
        """Two empty stores."""
        return cls(Side(oracle, await oracle.now()), Side(tested, await tested.now()), ids)

    async def ask(self, what: str, call: Call) -> Any:
        """Ask both; the oracle's answer. An error of Edda's is an answer, too."""
        self.trace.append(what)
        answers, plain = [], []
        for side in (self.oracle, self.tested):
            try:
                answer = await call(side)
                answers.append(answer)
                plain.append(side.plain(answer))
            except EddaError as error:
                answers.append(type(error).__name__)
                plain.append(type(error).__name__)
        assert plain[1] == plain[0], self._story(*plain)
        return answers[0]

    async def compare(self) -> None:
        """All that is there must be the same."""
        await self.ask("counts", lambda side: _counts(side.store))
        await self.ask("instances", lambda side: _instances(side.store))
        await self.ask("loaded", lambda side: side.store.load(self.ids))
        self.trace = self.trace[:-3]
        self.instances = {row.id: row for row in await self.oracle.store.find_instances(limit=1_000)}
        self.loaded = await self.oracle.store.load(self.ids)

    def move_clocks(self, hours: int) -> None:
        """Both at once."""
        self.trace.append(f"{hours} hours later")
        for side in (self.oracle, self.tested):
            side.store.clock_offset_us += hours * HOUR

    def _story(self, *plain: Any) -> str:
        right, wrong = (pformat(one, width=110).splitlines() for one in plain)
        difference = unified_diff(right, wrong, "the oracle", "the database", lineterm="", n=9)
        return "\n".join([*self.trace, "", *difference])


async def _counts(store: Storage) -> dict[str, int]:
    # Whether a dead worker's row is still there is the store's own business.
    return {name: count for name, count in (await store.counts()).items() if name != "workers" and count}


async def _instances(store: Storage) -> list[InstanceRow]:
    return sorted(await store.find_instances(limit=1_000), key=lambda row: row.id)
