"""HTTP in, workflows, outbox, relay, HTTP out: five processes and a ledger."""

from __future__ import annotations

import random
from collections import Counter

import httpx

from tests.crash import ledger, workflows
from tests.crash.customers import Customers
from tests.crash.programs import port_of
from tests.crash.shop import Shop


async def test_every_order_runs_once_and_every_event_arrives_in_order(shop: Shop) -> None:
    shop.start_sink()
    # Nobody dies here: what is slow on a busy machine must not be taken for dead.
    workers = [await shop.start_ready("worker", lease=20.0) for _ in range(2)]
    relay = shop.start_relay(publish_timeout=10.0)
    await relay.line("^ready$")
    port = port_of(shop.start("gateway"))
    customers = Customers(lambda: port, random.Random(3))

    await customers.buy(0, 40, over=2)
    await shop.all_done(40)

    assert await shop.faults(customers.orders) == []
    # Nothing failed, so nothing was done twice, and what was sent twice was refused.
    assert customers.in_vain == Counter()
    assert customers.verdicts["duplicate"] > 0
    assert customers.verdicts["conflict"] == 0
    assert len(ledger.read_sink(shop.sink_file)) == 40 * len(workflows.EVENTS)
    for order_id in customers.orders:
        assert {
            name: workflows.noted(shop.diary, name, order_id) for name in workflows.BODIES
        } == workflows.BODIES
    for process in [*workers, relay]:
        process.terminate()
        assert process.wait() == 0


async def test_batch_of_events_is_answered_event_by_event(shop: Shop) -> None:
    shop.start_sink()
    await shop.start_ready("worker")
    await shop.start_relay().line("^ready$")
    port = port_of(shop.start("gateway"))
    customers = Customers(lambda: port, random.Random(3))
    customers.orders["shop/1"] = 101
    order, payment = customers.order("shop/1"), customers.payment("shop/1")
    nobodys = {**order, "type": "nobody.waits", "id": "another"}

    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"http://127.0.0.1:{port}/",
            headers={"content-type": "application/cloudevents-batch+json"},
            json=[order, payment, order, nobodys],
        )

    assert answer.status_code == 202, answer.text
    verdicts = [result["result"] for result in answer.json()["results"]]
    # The payment comes before anybody waits for it: unmatched then, and received all the same.
    assert verdicts == ["accepted", "unmatched", "duplicate", "unmatched"]
    await shop.all_done(1)
    assert await shop.faults(customers.orders) == []
