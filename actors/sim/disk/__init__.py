"""A disk that keeps what was synced and may lose the rest at a power cut.

`disk.py` implements the same door as `runtime/os_disk.py` and passes the same conformance suite;
`crash.py` crashes a scenario at each call. Knows no actor.
"""
