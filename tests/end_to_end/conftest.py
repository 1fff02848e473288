"""The same shops as in the crash tests, and roads of the run's brokers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.crash.conftest import shop
from tests.crash.roads import Kind, Road
from tests.support.kafka import Kafka, new_name
from tests.support.rabbitmq import Broker

__all__ = ["shop"]

MakeRoad = Callable[[Kind], Awaitable[Road]]


@pytest.fixture
def make_road(kafka: Kafka, rabbitmq: Broker) -> MakeRoad:
    """A topic of four partitions, or the name of a queue which whoever uses it declares."""

    async def make(kind: Kind) -> Road:
        if kind == "kafka":
            return Road(kind, kafka.bootstrap, await kafka.topic(4), group=new_name("g"))
        return Road(kind, rabbitmq.url, rabbitmq.name("road"))

    return make
