"""The oracle: the storage contract in plain Python. For tests; nothing survives the process.

One lock, no cleverness, the order of the contract's sentences. What a database's store answers in the conformance
suite, this one must answer too.
Read:  tables.py (what is kept), turns.py, accept.py, outbox.py (what happens to it), store.py.
"""

from edda.storage.memory.store import MemoryStore

__all__ = ["MemoryStore"]
