"""Faults for real processes: start a cast of programs, kill, freeze and replace them, and look.

For tests of a system built on OnceMQ, and for OnceMQ itself. Only processes that were started here
are ever touched, each by its own pid.
"""

from ..runtime.process import end_with_parent
from .engine import Chaos
from .history import History
from .parts import Deeds, Fault, Slot
from .programs import Program, ProgramFailed, Running, free_endpoint, wait_until
from .reader import StoredMessage, read_topic

__all__ = [
    "Chaos",
    "Deeds",
    "Fault",
    "History",
    "Program",
    "ProgramFailed",
    "Running",
    "Slot",
    "StoredMessage",
    "end_with_parent",
    "free_endpoint",
    "read_topic",
    "wait_until",
]
