"""`tx.effect`: an outside call; a durable intent before it, its result after it.

Here: the handler's side and the hand-over to the thread that owns the ledger. Whether a call may
happen is decided in `core/consumer/effects.py`; an operator's answer comes from `operating`.
"""
