"""A ledger in tables of a user's database, behind the same door as a ledger in files.

What all databases have in common: the tables, the commit, the connection that is lent to handlers.
What one kind of database does by itself, with its driver, belongs to `library/sinks`; the simulator
has a kind of its own. May import what `shells` may import.
"""
