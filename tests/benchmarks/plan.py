"""Which measurements there are, and on which databases they are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.benchmarks import brokers, five_steps, idle, latency, parked, relay, wake
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job


@dataclass(frozen=True, slots=True)
class Measurement:
    """``group``: what ``--only`` names. ``count``: how many by default. ``side_by_side``: all databases at once."""

    group: str
    title: str
    work: Callable[[Job], Awaitable[list[Figure]]]
    in_flight: int = 1
    count: int = 0
    side_by_side: bool = False


MEASUREMENTS: tuple[Measurement, ...] = (
    *(
        Measurement("five-steps", f"five steps, {n} in flight", five_steps.measure, in_flight=n)
        for n in (1, 50, 200)
    ),
    Measurement("wake", "parked workflows woken", wake.measure, count=300),
    Measurement("latency", "event to completed", latency.measure_here, count=200),
    Measurement("latency", "event to completed elsewhere", latency.measure_elsewhere, count=100),
    Measurement("relay", "outbox to HTTP", relay.measure, count=5_000),
    Measurement("kafka", "Kafka to accepted", brokers.kafka_in, count=30_000),
    Measurement("kafka", "outbox to Kafka", brokers.kafka_out, count=10_000),
    Measurement("rabbitmq", "RabbitMQ to accepted", brokers.rabbitmq_in, count=10_000),
    Measurement("rabbitmq", "outbox to RabbitMQ", brokers.rabbitmq_out, count=5_000),
    Measurement("parked", "10,000 parked workflows", parked.measure, count=10_000),
    Measurement("idle", "idle worker", idle.measure, side_by_side=True),
)

GROUPS = tuple(dict.fromkeys(one.group for one in MEASUREMENTS))
