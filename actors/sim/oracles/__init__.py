"""What must hold in a simulated world: models outside of every crash, end checks.

An oracle observes and compares; it never changes what a process does.
"""
