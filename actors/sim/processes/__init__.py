"""The processes of a simulated world: who runs, what handlers do, who crashes.

A process here gives a shell its simulated doors, and adds when it starts, dies and freezes.
Decisions belong to `core`, putting an actor together to `shells`.
"""
