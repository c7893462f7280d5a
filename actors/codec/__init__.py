"""Bytes to values and back: user values, batches, log records, wire frames.

Nothing here decides or keeps state. A format changes together with docs/PROTOCOL.md or
docs/STORAGE.md and with a golden file. May import the vocabulary only.
"""
