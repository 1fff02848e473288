"""What SQLAlchemy Core says once for all databases: every transaction of the contract, as a function of a connection.

A database's own package takes over what it can say better by hand.
Read:  traits.py (what differs), turns.py, accept.py, ownership.py, relay.py, queries.py, store.py.
"""
