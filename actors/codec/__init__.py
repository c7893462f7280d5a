"""Bytes to values and back: user values, batches, log records, wire frames."""
