"""A node of the Maelstrom test bench: JSON lines in and out, the same cores.

`node.py` is the way in. Stores and offsets are fenced logs; forwards to other nodes are resent
until they are answered. May import `library/embedded` and everything below the library.
"""
