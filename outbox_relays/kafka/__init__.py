"""Events to Kafka topics. Needs the extra ``kafka``.

In:    events of the outbox, by ordering key.   Out: confirms, one for each.
Crash: between publish and confirm: published again with the same (source, id) and the same ``sequence``.
Order: per ordering key, which is the record's key: one batch of a partition is in flight at a time, and it is in the
       topic as a whole or not at all.
Read:  publisher.py (where an event goes), record.py (what it looks like there), sender.py (batches), line.py.
"""

from outbox_relays.kafka.publisher import KafkaPublisher

__all__ = ["KafkaPublisher"]
