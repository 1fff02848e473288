"""The way in: raw messages of Kafka, RabbitMQ and HTTP become accepted events.

In comes what a broker or a client hands over; out goes one accepted batch per database transaction, and only
then the settling word to the broker. A crash at any point loses nothing: what is not settled comes again.
"""
