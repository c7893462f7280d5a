"""Backups of a running system, restoring them, and a check of all that lies on the disk.

`cut.py` says which moment a backup shows, `catalog.py` what lies in it. Nothing here prints. May import
`core`, `codec`, `storage`, `shells/ledger`, and of the library `ledgers` and `sinks`.
"""
