"""Backups of a running system: making them, checking them, restoring them; and fsck of all files.

`cut.py` says which moment a backup shows, `catalog.py` what lies in it. Nothing here prints. May import
`core`, `codec`, `storage`, `shells/ledger`, and of the library `ledgers` and `sinks`.
"""
