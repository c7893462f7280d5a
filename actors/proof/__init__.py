"""The proof: what happened, read from the files by code that shares nothing with what wrote them.

parse/   reads logs, ledgers and snapshots from their byte tables (docs/STORAGE.md)
verify/  proves a whole system from its files alone, with flat memory
checks/  compares such a proof with what clients and processes reported, and with earlier looks
story/   tells what became of one message

Each promise is proved once: what files alone can show in verify/, the rest in checks/. The proof may
import ids, limits and errors, and nothing else of this package: a mistake in storage, codec, core
or driver cannot hide itself here.
"""
