"""Events from Kafka topics. Needs the extra ``kafka``.

In:    records of the topics, as a member of a consumer group.
Out:   accepted events; dead letters for records that can never become one.
Tx:    accept, with the positions of the batch's partitions; Kafka's own offsets are committed after it, as a courtesy.
Crash: anywhere: the next owner of a partition goes on where the last accept transaction left its position.
Read:  gateway.py (start, stop, health), member.py (the loop), record.py and batch.py (pure), watch.py.
"""

from gateways.kafka.gateway import KafkaGateway

__all__ = ["KafkaGateway"]
