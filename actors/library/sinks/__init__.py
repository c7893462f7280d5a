"""SQL sinks: the consumer's commit is a transaction of the user's own database.

Here: one connection lent to handlers and taken back for the commit (session, awaited), one file
for each database (sqlite, postgres), and a ledger in tables behind the same door as a ledger in
files. Imports core, codec, storage and runtime, never handlers or consumers. A driver (psycopg) is
imported only when an address names it; asyncio only for async handlers.
"""
