"""A queue inside one process: the same cores and logs, without sockets."""
