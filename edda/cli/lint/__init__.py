"""``edda lint``: finds what must not stand in a workflow's own code. In: Python files. Out: findings. Runs no code.

Read: rules.py (what, why, what instead), then names.py (what a name in a module stands for), check.py (the walk).
"""
