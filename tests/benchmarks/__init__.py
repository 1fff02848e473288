"""Benchmarks: how fast, and at what price.

In:    ``python -m tests.benchmarks`` (``make bench``).   Out: tables; JSON and ``docs/benchmarks.md`` if asked.
How:   each measurement runs in a process of its own, on a database of its own, and is checked by SQL afterwards.
Read:  five_steps.py (a workload), meter.py (what is counted), budgets.py (what is wanted), runner.py, report.py.
"""
