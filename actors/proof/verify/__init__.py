"""The proof from files alone: each id accepted once; processed, pending or parked.

`verify.py` is the way in. Rows are sorted on disk, so memory stays flat for any number of ids.
"""
