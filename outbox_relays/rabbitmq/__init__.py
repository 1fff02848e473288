"""Events to a RabbitMQ exchange or queue. Needs the extra ``rabbitmq``.

Read: publisher.py (what each answer of the broker means), sender.py (one connection), routing.py (where an event goes).
"""

from outbox_relays.rabbitmq.publisher import RabbitMQPublisher

__all__ = ["RabbitMQPublisher"]
