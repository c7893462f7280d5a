"""`tx.effect`: an outside call; a durable intent before it, its result after it.

Here: the handler's side (effects, calls) and the hand-over to the thread that owns the ledger
(desk). Whether a call may happen is decided in `core/consumer/effects.py`; an operator's answer
comes from `operating`. Imports messages and shells, never handling or consuming.
"""
