"""Operators' acts: topics, groups, offsets, dead letters, unknown effects.

Each act is one function or class that a verb of `cli` calls; nothing here prints.
"""
