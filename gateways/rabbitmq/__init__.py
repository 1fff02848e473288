"""Events from RabbitMQ queues. Needs the extra ``rabbitmq``.

In:    deliveries of durable queues.
Out:   accepted events; poison as dead letters.
Tx:    one accept transaction for what is there when the last one has ended; acknowledged after its commit.
Crash: before the acknowledgement the broker delivers again, and the identity refuses the copy.
Read:  reading.py (the strict edge), consumer.py (one queue), gateway.py, connection.py, wire.py.
"""

from gateways.rabbitmq.gateway import RabbitMQGateway

__all__ = ["RabbitMQGateway"]
