"""SQL sinks: the consumer's commit is a transaction of the user's own database.

Here: a ledger in tables, behind the same door as a ledger in files; one file for each database.
A user's driver (psycopg, aiosqlite) is imported only when an address names it.
"""
