"""A broker's events in, workflows, outbox, a broker's events out: each part a process of its own, and a ledger."""

from __future__ import annotations

import json
import random

import pytest

from tests.crash import ledger, roads, workflows
from tests.crash.customers import customers_on
from tests.crash.roads import Found, Kind
from tests.crash.shop import Shop
from tests.end_to_end.conftest import MakeRoad

ORDERS = 30


@pytest.mark.parametrize("database", ["postgresql", "mysql", "sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("way_in", "way_out"), [("kafka", "kafka"), ("rabbitmq", "rabbitmq"), ("kafka", "rabbitmq")]
)
async def test_every_order_runs_once_and_every_event_leaves_in_order(
    shop: Shop, make_road: MakeRoad, way_in: Kind, way_out: Kind
) -> None:
    shop.way_in, shop.way_out = await make_road(way_in), await make_road(way_out)
    await shop.start_ready("worker")
    await shop.start_relay().line("^ready$")
    await shop.start_gateway().line("listening")
    customers = customers_on(shop.way_in, random.Random(3))

    await customers.buy(0, ORDERS, over=1)
    await shop.all_done(ORDERS)
    await shop.drained()
    found = await shop.close()

    assert await shop.faults(customers.orders) == []
    accepted = await shop.accepted()
    assert len(accepted) == 2 * ORDERS
    # Nobody died, so that nothing was sent twice but by the customers.
    assert len(found) == ORDERS * len(workflows.EVENTS)
    for order_id in customers.orders:
        assert {
            name: workflows.noted(shop.diary, name, order_id) for name in workflows.BODIES
        } == workflows.BODIES
    if way_in == "kafka":
        sent = await roads.read(shop.way_in)
        assert len(sent) > 2 * ORDERS
        assert ledger.out_of_order(sent, accepted) == []
    if way_out == "kafka":
        assert len({event.lane for event in found}) > 1
        assert len({event.key for event in found}) > 1
        assert ledger.out_of_sequence(_orders(found)) == []


def _orders(found: list[Found]) -> dict[str, list[Found]]:
    """What came out, by ordering key and order, in the order of the partition.

    Two orders of one customer that are committed at the same moment have no order between them, and their numbers may
    cross.
    """
    keys: dict[str, list[Found]] = {}
    for event in found:
        keys.setdefault(f"{event.key} {json.loads(event.data)['order_id']}", []).append(event)
    return keys
