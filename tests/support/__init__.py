"""What the tests stand on: databases, processes, waiting. Start with ``databases.py``."""
