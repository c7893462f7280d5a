"""A user's database in the simulated world, and one process's connection to it.

Sessions, transactions, locks and sudden ends. The ledger in the tables is that of production
(`shells/tables`); the drivers of real databases are tested elsewhere.
"""
