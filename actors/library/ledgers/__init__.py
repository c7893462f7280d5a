"""Ledgers of consumers as files: where they lie; reading, export, import.

A ledger in a database belongs to `sinks`. What a record means belongs to `core/consumer`.
May import `core/consumer`, `codec` and `storage`, and no other folder of the library.
"""
