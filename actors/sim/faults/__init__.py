"""Faults of a simulated world, one file for each place where they strike.

A new kind is a row in `kinds.py`, from which plans choose, and one in `catalog.py`. The world counts
how often each one struck: a run that injected nothing proves nothing. May import `processes`.
"""
