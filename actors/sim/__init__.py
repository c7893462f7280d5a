"""Simulated disk, network and clock: the same doors as the real ones, deterministic from a seed."""
