"""What an instance's history holds and how values become bytes.

In:    Python values and exceptions of user code.   Out: records, and the same values again.
Read:  records.py (the kinds), codec.py (values, exceptions), arguments.py (calls).
"""
