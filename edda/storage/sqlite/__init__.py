"""SQLite: one writer thread, WAL, synchronous=FULL. For one machine; one process per file is best."""
