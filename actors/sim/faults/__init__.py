"""Faults of a simulated world. A new fault is a file, a row in `kinds.py` and one in `catalog.py`.

A plan switches each kind on or off and says how often it strikes. The world counts how often each
one struck: a run that injected nothing proves nothing. Knows the processes; no oracle judges by it.
"""
