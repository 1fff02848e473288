"""The demo adds up, and its ledger is worth something: it finds what we plant."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from edda.cli.demo.command import World, perform
from edda.cli.demo.ledger import Ledger, check
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.schema import history, instances, outbox
from tests.cli.conftest import Run
from tests.support.databases import Database
from tests.support.kafka import Kafka
from tests.support.rabbitmq import Broker
from tests.support.servers import run_apart

ORDERS = 12


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.timeout(200)
async def test_the_demo_adds_up_and_says_so(edda: Run) -> None:
    ran = await edda("demo", "--orders", str(ORDERS), "--json")
    told = json.loads(ran.out)
    assert ran.code == 0, ran.err
    assert told["adds_up"] is True
    assert told["faults"] == []
    assert (told["completed"], told["out"], told["lost"], told["outbox"]) == (ORDERS, 2 * ORDERS, 0, 0)
    assert all(0 < after < 2 * ORDERS for after in told["killed"].values())
    assert set(told["killed"]) == {"gateway", "worker", "relay"}
    assert told["duplicates_refused"] > 0
    assert "worker killed with -9" in ran.err  # the table, for people


async def test_the_demo_refuses_a_database_that_is_in_use_and_says_what_to_do(
    edda: Run, sqlite_database: Database
) -> None:
    store = open_store(sqlite_database.url)
    await store.open()
    await store.migrate()
    async with store.engine().begin() as connection:
        await connection.execute(sa.text(_AN_EVENT))
    await store.close()
    ran = await edda("demo", "--database-url", sqlite_database.url)
    assert ran.code == 1
    assert "edda demo" in ran.err
    assert "Traceback" not in ran.err


_AN_EVENT = (
    "INSERT INTO edda_events (seq, type, source, event_id, attributes, accepted_at) "
    "VALUES (1, 't', 's', 'i', '{}', 1)"
)


@pytest.mark.long
async def test_the_demo_adds_up_on_every_database(database: Database, tmp_path: Path) -> None:
    _, faults = await perform(60, World(database.url), tmp_path, quiet())
    assert faults == []


@pytest.mark.timeout(200)
@pytest.mark.real
@pytest.mark.parametrize("broker", ["kafka", "rabbitmq"])
async def test_the_demo_adds_up_on_a_broker_of_ones_own_and_a_server(
    edda: Run, kafka: Kafka, rabbitmq: Broker, postgresql_database: Database, broker: str
) -> None:
    address = {"kafka": kafka.bootstrap, "rabbitmq": rabbitmq.url}[broker]
    where = ("--database-url", postgresql_database.url, f"--{broker}", address)
    ran = await edda("demo", "--orders", "40", "--json", *where)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["faults"], told["adds_up"], told["completed"], told["out"]) == ([], True, 40, 80)


# ---------------------------------------------------------------------------------------------- planted faults


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """One play that added up, and what it left."""
    folder = tmp_path_factory.mktemp("play")
    ledger, faults = run_apart(lambda: perform(ORDERS, World(), folder, quiet()))
    assert faults == []
    return folder, ledger


class Stage:
    """A copy of it, to plant a fault in."""

    def __init__(self, store: Storage, sink: Path, ledger: Ledger) -> None:
        self.store, self.sink, self.ledger = store, sink, ledger

    async def faults(self) -> str:
        """What the check finds when it looks again."""
        self.ledger.look(await self.store.counts(), self.sink)
        return "\n".join(await check(self.ledger, ORDERS, self.store, self.sink))

    def told(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.sink.read_text().splitlines()]

    def tell(self, events: list[dict[str, str]]) -> None:
        self.sink.write_text("".join(json.dumps(event) + "\n" for event in events))

    async def execute(self, statement: sa.Executable) -> None:
        async with self.store.engine().begin() as connection:
            await connection.execute(statement)


@pytest.fixture
async def stage(played: tuple[Path, Ledger], tmp_path: Path) -> AsyncIterator[Stage]:
    folder, ledger = played
    shutil.copytree(folder, tmp_path / "copy")
    store = open_store(f"sqlite:///{tmp_path}/copy/demo.db")
    await store.open()
    yield Stage(store, tmp_path / "copy" / "sink.jsonl", copy.deepcopy(ledger))
    await store.close()


async def test_what_was_played_adds_up_again(stage: Stage) -> None:
    assert await stage.faults() == ""


async def test_a_lost_event_is_found(stage: Stage) -> None:
    events = stage.told()
    lost = events[-1]
    stage.tell([event for event in events if event["id"] != lost["id"]])
    assert f"{lost['type']} at the sink: {ORDERS - 1}, expected {ORDERS}" in await stage.faults()


async def test_an_event_said_twice_under_different_ids_is_found(stage: Stage) -> None:
    events = stage.told()
    again = {**events[-1], "id": "another", "sequence": "9" * 20}
    stage.tell([*events, again])
    assert f"{again['type']} said twice under different ids: order-" in await stage.faults()


async def test_a_repeat_under_the_same_id_is_no_fault_and_counted(stage: Stage) -> None:
    events = stage.told()
    repeats = stage.ledger.repeats_at_sink
    stage.tell([*events, events[0]])
    assert await stage.faults() == ""
    assert stage.ledger.repeats_at_sink == repeats + 1


async def test_a_broken_order_is_found(stage: Stage) -> None:
    stage.tell(list(reversed(stage.told())))
    assert "came behind a later event of customer-" in await stage.faults()


async def test_a_doubled_state_change_is_found(stage: Stage) -> None:
    async with stage.store.engine().connect() as connection:
        [first, *_] = (await connection.execute(sa.select(history).where(history.c.seq == 1))).all()
    row = {**first._mapping, "seq": 99, "pos": 99}
    await stage.execute(sa.insert(history).values(**row))
    assert f"history of {first.instance_id}" in await stage.faults()


async def test_an_activity_that_was_forgotten_is_found(stage: Stage) -> None:
    async with stage.store.engine().connect() as connection:
        [first, *_] = (await connection.execute(sa.select(history).where(history.c.kind == "activity"))).all()
    one = sa.and_(history.c.instance_id == first.instance_id, history.c.seq == first.seq)
    await stage.execute(sa.delete(history).where(one))
    assert f"history of {first.instance_id}" in await stage.faults()


async def test_a_workflow_too_many_or_too_few_is_found(stage: Stage) -> None:
    async with stage.store.engine().connect() as connection:
        [first, *_] = (await connection.execute(sa.select(instances))).all()
    await stage.execute(sa.insert(instances).values(**{**first._mapping, "id": "another"}))
    assert f"workflows started: {ORDERS + 1}, expected {ORDERS}" in await stage.faults()
    await stage.execute(sa.delete(instances).where(instances.c.id.in_(["another", first.id])))
    assert f"workflows completed: {ORDERS - 1}, expected {ORDERS}" in await stage.faults()


async def test_a_workflow_that_did_not_complete_is_found(stage: Stage) -> None:
    await stage.execute(sa.update(instances).values(state="waiting"))
    assert f"workflows completed: 0, expected {ORDERS}" in await stage.faults()


async def test_a_row_left_in_the_outbox_is_found(stage: Stage) -> None:
    row = {"destination": "default", "state": "dead", "type": "t", "source": "s", "event_id": "i"}
    numbers = {"attributes": b"{}", "attempts": 1, "available_at": 0, "created_at": 0}
    await stage.execute(sa.insert(outbox).values(**row, **numbers))
    assert "outbox rows left: 1, expected 0" in await stage.faults()


async def test_a_play_without_a_kill_is_found(stage: Stage) -> None:
    stage.ledger.killed["worker"] = None
    assert "the worker was never killed" in await stage.faults()
    stage.ledger.killed["relay"] = 2 * ORDERS
    assert "the relay was killed when all was done" in await stage.faults()


async def test_a_play_without_duplicates_is_found(stage: Stage) -> None:
    stage.ledger.duplicates_refused = 0
    assert "no duplicate was refused" in await stage.faults()


async def test_an_event_accepted_twice_is_found(stage: Stage) -> None:
    stage.ledger.paid("order-1", "accepted")
    assert "the payment of order-1 was accepted twice" in await stage.faults()


async def test_an_event_that_was_never_accepted_is_found(stage: Stage) -> None:
    stage.ledger.sent_payments -= 1
    assert f"payments accepted: {ORDERS - 1}, expected {ORDERS}" in await stage.faults()
