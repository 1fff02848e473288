"""What becomes of a message whose bytes may hold anything."""

from __future__ import annotations

import base64
import json

import pytest

from edda.cloudevent import CloudEvent
from gateways.cloudevents import MalformedEventError
from gateways.delivery import Delivery, Poison, bind, letter

EVENT = CloudEvent("a", "/shop", "order.paid", b"{}", "application/json")
MESSAGE = Delivery(
    "kafka:c/orders/0@7", "orders", b"\xff{", (("x", b"\x00"), ("x", b"1")), "text/plain", b"\xfe"
)


def bound(mapping: object = None, read: object = lambda _: None, max_bytes: int = 1_000) -> object:
    return bind(MESSAGE, read, mapping, max_bytes)  # type: ignore[arg-type]


def test_message_that_claims_to_be_an_event_is_never_mapped() -> None:
    assert bound(lambda _: pytest.fail("mapped"), lambda _: EVENT) is EVENT


def test_message_that_claims_it_and_is_none_is_poison() -> None:
    def read(_: Delivery) -> CloudEvent:
        raise MalformedEventError("no id")

    assert bound(lambda _: EVENT, read) == Poison("[EDDA410] not a valid CloudEvent: no id")


def test_message_that_does_not_claim_it_is_mapped_or_left_out_or_poison() -> None:
    assert bound(lambda _: EVENT) is EVENT
    assert bound(lambda _: None) is None
    assert isinstance(found := bound(), Poison)
    assert "mapping=" in found.reason


def test_mapping_that_raises_makes_poison_of_its_message_alone() -> None:
    found = bound(lambda delivery: CloudEvent("", "/", delivery.topic))
    assert isinstance(found, Poison)
    assert found.reason.startswith(
        "the mapping raised InvalidEventError: [EDDA221] event '' from '/': id must not"
    )


def test_message_above_the_limit_is_poison_and_not_looked_into() -> None:
    found = bound(read=lambda _: pytest.fail("looked into"), max_bytes=6)
    assert found == Poison("the message has 7 bytes, and at most 6 are taken (max_bytes)")


def test_dead_letter_holds_every_byte_that_came() -> None:
    kept = letter(MESSAGE, "because", 3)
    assert (kept.origin, kept.raw, kept.reason, kept.position) == (MESSAGE.origin, b"\xff{", "because", 3)
    assert [(name, base64.b64decode(value)) for name, value in json.loads(kept.headers)] == [
        ("content-type", b"text/plain"),
        ("edda-key", b"\xfe"),
        ("x", b"\x00"),
        ("x", b"1"),
    ]
