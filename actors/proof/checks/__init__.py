"""Checks that need a history: what processes reported, compared with the files.

One file for each family of checks; `verdict.py` runs them all. What files alone can show belongs to
`verify`.
"""
