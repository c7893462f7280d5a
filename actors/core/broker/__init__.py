"""The broker's core: it judges every request and owns what the log holds.

core.py is the way in; each other file is one table or one family of requests. Nothing here knows
clients or consumers as code, only as messages of protocol.py.
"""
