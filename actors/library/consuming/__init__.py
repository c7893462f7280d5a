"""A consumer process: one thread for sockets, ledgers and leases, and handlers in the main one."""
