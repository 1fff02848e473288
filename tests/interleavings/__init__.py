"""Two parties and one database at the wrong moment: one file per invariant, each test a bug report that it prevents.

Nothing is simulated. The stores are real and used through their contract; one is stopped in the middle of its
transaction by a lock that the test holds (``barrier.py``), by a connection that is cut between the server's commit
and its answer (``tests/support/proxy.py``), or by a signal to its process. Waiting is seen in the server's own views.
"""
