"""The fenced log, and the narrow door to the disk under it.

`log.py` is the way in; docs/STORAGE.md is the contract.
    writing          writing, snapshots, creation; recovery opens a log after a crash
    reading          view and scan (one generation), by_position (records of an open log),
                     outside_reader and inspection (beside the owner)
    bytes and names  framing, document, layout, orders
    doors            disk; memory is a log without one

Storage keeps bytes and knows no actor. May import `codec` and the vocabulary.
"""
