"""`Harness`: a user's handlers in a test, with real cores and ledgers in memory.

Real cores, simulated disk, no sockets: a test can crash the consumer at each step of its commit.
The only folder of the library that may import `sim`.
"""
