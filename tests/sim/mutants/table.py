"""Seeded bugs: each breaks one rule that the system stands on, by replacing one function.

A mutant is `Mutant(name, rule, patches)`; a patch names an owner, an attribute, and a function that
gets the original and returns the broken one. `tests` names fast tests for those that a simulated
system does not meet by its nature (damage, say). A new feature adds a file that calls `mutant`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Patch:
    """One replaced attribute."""

    owner: Any
    name: str
    change: Change


@dataclass(frozen=True)
class Mutant:
    """One seeded bug."""

    name: str
    rule: str  # what it breaks
    patches: tuple[Patch, ...]
    tests: tuple[str, ...] = ()  # fast tests that must catch it; () for the simulator
    faults: tuple[str, ...] = ()  # only these strike, often; () for what each seed draws
    database: str = ""  # the kind of database that the first group has; "": as each seed draws


MUTANTS: dict[str, Mutant] = {}


def mutant(
    name: str,
    rule: str,
    *patches: tuple[Any, str, Change],
    tests: Sequence[str] = (),
    faults: Sequence[str] = (),
    database: str = "",
) -> None:
    assert name not in MUTANTS, name
    MUTANTS[name] = Mutant(
        name, rule, tuple(Patch(*patch) for patch in patches), tuple(tests), tuple(faults), database
    )


@contextlib.contextmanager
def applied(chosen: Mutant | None) -> Iterator[None]:
    """Run with a mutant in place; None is the control."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for patch in chosen.patches if chosen else ():
            original = vars(patch.owner)[patch.name]
            undo.append((patch.owner, patch.name, original))
            plain = original
            if isinstance(original, staticmethod | classmethod):
                plain = original.__func__
            changed: Any = patch.change(plain)
            if isinstance(original, classmethod):
                changed = classmethod(changed)
            setattr(patch.owner, patch.name, changed)
        yield
    finally:
        for owner, name, original in reversed(undo):
            setattr(owner, name, original)


def nothing(_original: Any) -> Any:
    return lambda *_args, **_options: None
