"""The fenced log, and the narrow door to the disk under it.

`log.py` is the way in, `recovery.py` opens a log after a crash; docs/STORAGE.md is the contract.
Storage keeps bytes and knows no actor. May import `codec` and the vocabulary.
"""
