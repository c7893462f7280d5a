"""From bytes to facts: a second reader of each file format.

Written from the byte tables of docs/STORAGE.md; shares no code with `codec` and `storage`.
"""
