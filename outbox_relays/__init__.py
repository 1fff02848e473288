"""The way out: rows of the outbox become messages of Kafka, RabbitMQ and HTTP.

In come the rows that committed with their cause; out goes each event at least once, in the order of its key,
and a row leaves only when the broker has confirmed that very message.
"""
