"""A consumer process: one I/O thread, and handlers in the main thread.

Here: which partitions the process holds, and the life of each consumer in it. How a handler is
called belongs to `handling`, what a commit contains to `core/consumer`.
"""
