"""A disk in a simulated machine: what survives a power cut, and what a crash at any call leaves."""
