"""Bytes to values and back: user values, batches, log records, wire frames.

Belongs here: byte layouts, and the checks that bytes from a peer or a disk must pass before they
are believed. Does not: what a value means to an actor (core/), files and frames of the log
(storage/). May import the vocabulary and nothing else of the package.
"""
