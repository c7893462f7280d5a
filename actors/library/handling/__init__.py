"""Handlers: their shapes, how each is called, and `Tx`, which collects changes.

Here: one call of a handler, from message to collected changes. The commit belongs to
`core/consumer`, the threads and partitions of a process to `consuming`.
"""
