"""Mutants of the consumer's shell: what the core asks for is not done, or done wrongly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.client.connection import Reconnect
from oncemq.core.consumer.effect_work import LookForOrders
from oncemq.core.consumer.work import AnswerDropped, LedgerPeeked, Repost
from oncemq.shells.consumer import ConsumerShell
from tests.sim.mutants.table import mutant, nothing

DISK = ("disk full",)


def _without(*kinds: type) -> Any:
    def change(original: Any) -> Any:
        def broken(self: Any, item: Any) -> None:
            if not isinstance(item, kinds):
                original(self, item)

        return broken

    return change


mutant(
    "shell: a ledger is opened under an epoch of the shell's own",
    "the granted epoch is the generation of the ledger",
    (
        ConsumerShell,
        "_open",
        lambda original: lambda self, item: original(self, replace(item, epoch=item.epoch + 1)),
    ),
)
mutant(
    "shell: orders of operators are not looked for",
    "what an operator has said reaches the owner of the ledger",
    (ConsumerShell, "_perform", _without(LookForOrders)),
    faults=("effect orders", "kill", "power cut", "call error"),
)
mutant(
    "shell: an answer that is dropped is not given back",
    "what a call left open is rolled back when nothing of it counts",
    (ConsumerShell, "_perform", _without(AnswerDropped)),
    tests=("tests/shells/test_consumer.py",),
)
mutant(
    "shell: an answer held on a full disk is lost",
    "what was held comes back when there is room",
    (ConsumerShell, "_perform", _without(Repost)),
    faults=DISK,
)
mutant(
    "shell: a full disk at the opening is for ever",
    "what could not be done is tried again",
    (ConsumerShell, "_try_again", nothing),
    faults=DISK,
)
mutant(
    "shell: no fresh socket",
    "a connection that is of no use is given up for another one",
    (ConsumerShell, "_perform", _without(Reconnect)),
    tests=("tests/shells/test_consumer.py",),
)


def _told_once(original: Any) -> Any:
    def broken(self: Any, event: Any) -> None:
        if isinstance(event, LedgerPeeked):
            event = self.__dict__.setdefault("_first_facts", event)
        original(self, event)

    return broken


mutant(
    "shell: a standby reports what the ledger held at its start",
    "each join reports where the ledger stands now",
    (ConsumerShell, "post", _told_once),
)
