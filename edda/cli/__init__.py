"""The command line: ``edda demo``, ``edda migrate``, ``edda instances``. Tables for people, ``--json`` for programs."""

from edda.cli.main import main

__all__ = ["main"]
