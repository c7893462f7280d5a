"""Ledgers of consumers as files: where they are, how they are read, exported and imported."""
