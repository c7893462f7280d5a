"""The fenced log, and the narrow door to the disk under it. docs/STORAGE.md is the contract.

Belongs here: bytes of frames and documents, recovery, fencing, snapshots, reading without a lock.
Does not: what a record means (codec/records.py), what an actor does with it (core/).
May import the vocabulary and nothing else of the package.

Read `disk.py` (the door), `framing.py` and `document.py` (the bytes), `scan.py` and `view.py` (what
is there), then `recovery.py` (opening), `writing.py` and `log.py` (going on).
"""
