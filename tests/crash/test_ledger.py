"""The ledger that the crash tests trust finds each fault that it is there to find."""

from __future__ import annotations

import dataclasses

import pytest

from tests.crash import ledger, workflows
from tests.crash.ledger import Books, Delivery, Entry, Instance
from tests.crash.roads import Found

ORDERS = {"shop/1": 101, "shop/2": 102}


def books() -> Books:
    """As they are when all has gone well: the second order changed hands in the middle, and an event came twice."""
    found = Books(leftovers={"edda_waits": 0, "edda_outbox": 0})
    for number, (order_id, amount) in enumerate(ORDERS.items(), 1):
        instance_id = f"i{number}"
        result = workflows.result_of(order_id, amount)
        found.instances.append(Instance(instance_id, "shop", "completed", None, 4, result))
        found.history[instance_id] = [
            Entry(seq, seq - 1, 1 if number == 1 or seq < 4 else 4, kind, name)
            for seq, (kind, name) in enumerate(workflows.HISTORY, 1)
        ]
        found.bookings.append((order_id, amount))
        found.deliveries += [
            Delivery("/shop", f"{kind} {order_id}", kind, order_id) for kind in workflows.EVENTS
        ]
    found.deliveries.append(found.deliveries[0])
    return found


def told(found: Books) -> str:
    return "\n".join(ledger.faults(found, ORDERS))


def test_books_that_add_up_have_no_fault() -> None:
    assert told(books()) == ""


def test_order_that_never_ran() -> None:
    found = books()
    del found.instances[0]
    assert "order shop/1 ran 0 times" in told(found)


def test_order_that_ran_twice() -> None:
    found = books()
    found.instances.append(dataclasses.replace(found.instances[0], id="i3"))
    found.history["i3"] = found.history["i1"]
    assert told(found) == "order shop/1 ran 2 times"


@pytest.mark.parametrize("state", ["running", "runnable", "waiting", "dead", "failed", "paused"])
def test_order_that_is_stuck(state: str) -> None:
    found = books()
    found.instances[0] = dataclasses.replace(found.instances[0], state=state, output=None)
    assert f"stuck: instance i1 is {state}" in told(found)


def test_ended_order_that_somebody_owns() -> None:
    found = books()
    found.instances[0] = dataclasses.replace(found.instances[0], owner="w1")
    assert told(found) == "instance i1 has ended and is owned by w1"


def test_order_with_another_result() -> None:
    found = books()
    found.instances[0] = dataclasses.replace(found.instances[0], output=workflows.result_of("shop/1", 102))
    assert "order shop/1 has another result" in told(found)


def test_order_that_nobody_sent() -> None:
    found = books()
    found.instances[0] = dataclasses.replace(found.instances[0], output=workflows.result_of("shop/9", 101))
    assert "for shop/9, which was never sent" in told(found)


def test_step_that_is_missing_in_a_history() -> None:
    found = books()
    del found.history["i1"][2]
    assert "history of i1" in told(found)


def test_step_that_is_in_a_history_twice() -> None:
    found = books()
    found.history["i1"].append(dataclasses.replace(found.history["i1"][-1], seq=10, pos=10))
    assert "history of i1" in told(found)


def test_loser_that_wrote_after_the_winner() -> None:
    found = books()
    found.history["i2"][6] = dataclasses.replace(found.history["i2"][6], fence=1)
    assert "owners' writes are mixed in the history of i2: fences [1, 1, 1, 4, 4, 4, 1, 4, 4]" in told(found)


def test_write_under_a_fence_that_was_never_given() -> None:
    found = books()
    found.instances[1] = dataclasses.replace(found.instances[1], fence=3)
    assert "was written under fence 4, above its 3" in told(found)


def test_two_records_at_one_place() -> None:
    found = books()
    found.history["i1"][3] = dataclasses.replace(found.history["i1"][3], pos=2)
    assert "two records of i1 have one place" in told(found)


def test_users_row_that_was_written_twice() -> None:
    found = books()
    found.bookings.append(("shop/1", 101))
    assert told(found) == "order shop/1 over 101 was booked 2 times"


def test_users_row_that_is_lost() -> None:
    found = books()
    found.bookings.remove(("shop/1", 101))
    assert told(found) == "order shop/1 over 101 was booked 0 times"


def test_users_row_that_is_wrong() -> None:
    found = books()
    found.bookings[0] = ("shop/1", 99)
    assert "booked, but never sent: ('shop/1', 99)" in told(found)


def test_event_that_never_came_out() -> None:
    found = books()
    found.deliveries = [
        one
        for one in found.deliveries
        if one != Delivery("/shop", "order.packed shop/2", "order.packed", "shop/2")
    ]
    assert told(found) == "order.packed of shop/2 came out under 0 ids"


def test_event_that_came_out_twice_under_two_ids() -> None:
    found = books()
    found.deliveries.append(Delivery("/shop", "again", "order.packed", "shop/2"))
    assert told(found) == "order.packed of shop/2 came out under 2 ids"


def test_event_of_an_order_that_nobody_sent() -> None:
    found = books()
    found.deliveries.append(Delivery("/shop", "new", "order.packed", "shop/9"))
    assert told(found) == "events came out for shop/9, which was never sent"


def test_events_of_one_order_in_the_wrong_order() -> None:
    found = books()
    found.deliveries[0], found.deliveries[1] = found.deliveries[1], found.deliveries[0]
    assert (
        told(found)
        == "the events of shop/1 came out in the order ['order.packed', 'order.booked', 'order.shipped']"
    )


def test_row_that_is_left_over() -> None:
    found = books()
    found.leftovers["edda_waits"] = 3
    assert told(found) == "left over: 3 rows of edda_waits"


# ---------------------------------------------------------------------------------------------- accept order

#: Two lanes, one event of the first sent twice.
SENT = [
    Found(lane, {"source": "/customers", "id": one}, b"")
    for lane, one in [(0, "a"), (0, "b"), (1, "x"), (0, "a"), (1, "y"), (0, "c")]
]


def accepted(ids: str) -> list[tuple[str, str]]:
    return [("/customers", one) for one in ids]


@pytest.mark.parametrize("ids", ["abcxy", "xyabc", "axbyc"])
def test_lanes_may_be_accepted_in_any_turns(ids: str) -> None:
    assert ledger.out_of_order(SENT, accepted(ids)) == []


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ("bacxy", "('/customers', 'b') of lane 0 was accepted before what came before it"),
        ("abcyx", "('/customers', 'y') of lane 1 was accepted before what came before it"),
        ("abxy", "('/customers', 'c') of lane 0 was never accepted"),
        ("abcxyz", "('/customers', 'z') was accepted, and is in no lane"),
    ],
)
def test_accept_order_that_is_not_that_of_the_lane(ids: str, fault: str) -> None:
    assert ledger.out_of_order(SENT, accepted(ids)) == [fault]


# ---------------------------------------------------------------------------------------------- short orders


def short_books() -> Books:
    """As they are after the chaos with brokers, when all has gone well."""
    found, course = books(), workflows.courses["short"]
    for number, (order_id, amount) in enumerate(ORDERS.items()):
        instance = found.instances[number]
        found.instances[number] = dataclasses.replace(instance, output=course.result(order_id, amount))
        found.history[instance.id] = [
            Entry(seq, seq - 1, 1, kind, name) for seq, (kind, name) in enumerate(course.history, 1)
        ]
    return found


def test_short_order_that_adds_up_has_no_fault_and_is_no_full_one() -> None:
    assert ledger.faults(short_books(), ORDERS, "short") == []
    assert "history of i1" in told(short_books())


@pytest.mark.parametrize("at", range(len(workflows.courses["short"].history)))
def test_short_order_without_one_of_its_steps(at: int) -> None:
    found = short_books()
    del found.history["i2"][at]
    [fault] = ledger.faults(found, ORDERS, "short")
    assert fault.startswith("history of i2")


@pytest.mark.parametrize("kind", workflows.EVENTS)
def test_short_order_without_one_of_its_events(kind: str) -> None:
    found = short_books()
    found.deliveries = [one for one in found.deliveries if (one.type, one.order_id) != (kind, "shop/2")]
    assert ledger.faults(found, ORDERS, "short") == [f"{kind} of shop/2 came out under 0 ids"]


# ---------------------------------------------------------------------------------------------- sequence


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        ("123", ""),
        ("1213", ""),  # sent again
        ("132", "('/shop', '2') of k has sequence 2, behind 3"),
    ],
)
def test_sequence_of_a_key_that_does_not_rise(sent: str, fault: str) -> None:
    events = [Found(0, {"source": "/shop", "id": one, "sequence": one}, b"") for one in sent]
    assert ledger.out_of_sequence({"k": events}) == ([fault] if fault else [])
