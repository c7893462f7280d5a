"""Handlers: their shapes, how each is called, and `Tx`, which collects changes.

Here: one call of a handler, from message to collected changes. A call is composed of a runner for
the handler's shape (make_call). The commit belongs to `core/consumer`, the threads and partitions
of a process to `consuming`. Imports effects, sinks and messages, never consuming.
"""
