"""A user's database in the simulated world, and one process's connection to it.

Sessions, transactions, locks and sudden ends; the SQL of real sinks is tested elsewhere.
"""
