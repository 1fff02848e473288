"""Relays to Kafka, which are stopped at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from edda.storage.contract import Storage
from outbox_relays.kafka import KafkaPublisher
from outbox_relays.relay import Relay
from tests.outbox_relays.conftest import QUICK
from tests.support.kafka import Kafka, mock_cluster, shared
from tests.support.processes import Process
from tests.support.servers import UnavailableError

MakeKafkaRelay = Callable[..., Awaitable[Relay]]


@pytest.fixture
def protocol() -> Iterator[Kafka]:
    """Where Kafka's protocol is enough: the run's broker, or a mock cluster where none can be had."""
    try:
        found = shared()
    except UnavailableError:
        if os.environ.get("EDDA_REQUIRE_DATABASES") == "1":
            raise
        with mock_cluster() as (found, _):
            yield found
    else:
        yield found


@pytest.fixture
def mock() -> Iterator[tuple[Kafka, Process]]:
    """A mock cluster of the test's own, and its process."""
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture
async def relay_to() -> AsyncIterator[MakeKafkaRelay]:
    """Start a relay of a store to an address and a topic; settings of the publisher by name."""
    relays: list[Relay] = []

    async def make(store: Storage, address: str, topic: str, **settings: Any) -> Relay:
        publisher = KafkaPublisher(address, topic, **{"publish_timeout": 5.0} | settings)
        relay = Relay(store, publisher, backoff=QUICK)
        relays.append(relay)
        await relay.start()
        return relay

    yield make
    for relay in relays:
        await relay.stop()
