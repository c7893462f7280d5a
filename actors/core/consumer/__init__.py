"""The consumer's core: one grant, one ledger, one commit for all a handler does.

`core.py` is the way in and leads the parts: grant, fetch, window, handling, commits; `running.py`
holds what exists only while the ledger is open. What `ledger.py`, `processed.py` and
`open_effects.py` hold survives a crash. `work.py` and `effect_work.py` are the words between core
and shell. May import `core/client`, which sends its outputs.
"""
