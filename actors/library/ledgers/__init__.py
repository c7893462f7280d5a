"""Whole ledgers of consumers, kept as files: reading, export, import.

`shells/ledger/files.py` says where they lie; ledgers in a database belong to `shells/tables`, and
what a record means to `core/consumer`.
May import `core/consumer`, `codec` and `storage`, and no other folder of the library.
"""
