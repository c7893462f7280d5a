"""Checks that need a history: what processes reported, compared with the files.

One file for each family of checks; `table.py` lists them all. What files alone can show belongs to
`verify`.
"""
