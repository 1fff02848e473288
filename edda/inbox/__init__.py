"""Make an event durable and wake what waits for it.

In:    CloudEvents (with positions, and poison), from a gateway.   Out: what became of each, after the commit.
Tx:    accept, one per batch of up to 500 events; concurrent deliveries share it.
Crash: before COMMIT the sender delivers again; after COMMIT the identity refuses the copy.
Order: accept sequence numbers, given under the accept lock: gap-free, in commit order.
Read:  shapes.py (what events are hashed for), triggers.py (what they start), accept.py.
"""
