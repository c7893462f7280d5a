"""How a function becomes a check. A family of checks is a file beside this one.

    @check("I1-answer-is-kept", "history", "messages")
    def answer_is_kept(evidence: Evidence) -> Iterator[Violation]:
        '''An acknowledged message is in the log at the offset of the answer, as it was sent.'''

A check is pure, yields violations and says in its docstring what it promises. What files alone can
prove is no check here: `verify` has proved it, and what it found is part of the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..findings import Violation
from .evidence import Evidence

Judge = Callable[[Evidence], Iterable[Violation]]


class Check(NamedTuple):
    """One check: it runs when the evidence has all that it needs."""

    name: str
    promise: str
    needs: tuple[str, ...]  # fields of Evidence
    judge: Judge


CHECKS: dict[str, Check] = {}


def check(name: str, *needs: str) -> Callable[[Judge], Judge]:
    """Put a function into the table; a name stands for one check."""

    def register(judge: Judge) -> Judge:
        assert name not in CHECKS or CHECKS[name].judge is judge, f"two checks called {name}"
        promise = " ".join((judge.__doc__ or "").split())
        assert promise, f"{name} does not say what it promises"
        CHECKS[name] = Check(name, promise, needs, judge)
        return judge

    return register
