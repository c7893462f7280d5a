"""A queue inside one process: the same cores, logs and turn, without sockets.

Here: the broker, ledger and queue that one program owns alone. May import `producing` for encoding.
"""
