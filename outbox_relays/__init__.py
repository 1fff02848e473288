"""The way out: rows of the outbox to brokers and endpoints.

In:    outbox rows, taken under the destination's lease.   Out: confirmed messages.
Tx:    relay: one for taking, one for the results of a round.
Crash: between publish and confirm the row stays; it is published again with the same (source, id).
Order: per ordering key, kept through retry, dead letter and replay while the lease holds.
Read:  relay.py, ordering.py, retry.py, publisher.py; then http/.
"""
