"""The command line: ``edda demo``, ``edda migrate``, ``edda instances``. Tables for people, ``--json`` for programs."""
