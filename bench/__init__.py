"""Figures of this machine: `python -m bench --help`."""
