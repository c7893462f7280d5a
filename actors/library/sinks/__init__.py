"""SQL sinks: the consumer's commit is a transaction of the user's own database.

Here: what each kind of database does by itself (sqlite, postgres), addresses, and `await tx.sql`
(awaited). The ledger in tables and the connection that is lent to handlers are the same for all
kinds: `shells/tables`. Imports core, codec, storage, shells and runtime, never handlers or
consumers. A driver (psycopg) is imported only when an address names it; asyncio only for async
handlers.
"""
