"""The way in: transports turn what they receive into CloudEvents, hand them to the inbox, and settle after its commit.

In:    bytes and headers of HTTP requests (Kafka records, AMQP deliveries).
Out:   accepted events, or refusals with a reason.
Tx:    none of its own; ``edda.inbox`` accepts.
Crash: before the commit the sender sends again; after it the identity refuses the copy.
Read:  cloudevents.py (the strict edge), gateway.py (the contract), http/app.py.
"""
