"""The proof: what happened, read from the files by code that shares nothing with what wrote them.

parse_*.py read logs, ledgers and snapshots from their byte tables (docs/STORAGE.md), history.py
reads what processes said they did, check.py holds the table of all checks, verify.py proves a
whole system from its files with flat memory, and explain.py tells the story of one message.
Nothing here imports storage, codec, core or driver: a mistake there cannot hide itself here.
"""
