"""The broker's core: it judges each request and owns what the log holds.

`core.py` is the way in; each other file is one table or one family of requests. Clients and
consumers are known here only as messages of `protocol.py`.
"""
