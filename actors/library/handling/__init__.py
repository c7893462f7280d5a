"""Handlers: their shapes, their calls, and `Tx`, which keeps what they do until the commit."""
