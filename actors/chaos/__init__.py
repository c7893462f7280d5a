"""Faults for real processes: start them, kill, freeze and replace them, judge.

For `oncemq chaos` and for crash tests. Only processes that were started here are touched, each by
its own pid. Verdicts belong to `proof`; this folder may import `library`, `proof` and `runtime`.
"""

from ..runtime.process import end_with_parent
from .engine import Chaos
from .history import History
from .programs import Program, ProgramFailed, Running, free_endpoint, wait_until
from .reader import StoredMessage, read_topic
from .slots import Deeds, Fault, Slot

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
