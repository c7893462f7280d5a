"""The consumer's core: one grant, one ledger, one commit for all a handler does.

`core.py` is the way in; `running.py` holds what exists only while the ledger is open. May import
`core/client`, which sends its outputs.
"""
