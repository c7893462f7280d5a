"""The real world behind the doors: disk, sockets, clock, processes, settings.

Here also: structured events and supervision. Nothing here decides what an actor does. May import
`ports`, `storage` and the vocabulary; never `sim`, `core` or `library`.
"""
