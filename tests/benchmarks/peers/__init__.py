"""Other engines, running the five-step workflow: each a script for an interpreter of its own (``run.py`` makes it).

A script is called with database URL, workflows in flight and seconds, and prints how many completed, the seconds from
the first start to the last completion, and its CPU seconds, as JSON. Its database is read afterwards by ``run.py``.
"""
