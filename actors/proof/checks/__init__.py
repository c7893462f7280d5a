"""One file for each family of checks; table.py loads them all."""
