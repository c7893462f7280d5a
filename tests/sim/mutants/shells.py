"""Mutants of the shells of broker and producer: what the core asks for is not done, or at a wrong time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oncemq.core.client.connection import Reconnect
from oncemq.core.client.send_window import Settled
from oncemq.shells.broker import BrokerShell
from oncemq.shells.producer import ProducerShell
from oncemq.storage.log import FencedLog
from tests.sim.mutants.table import mutant, nothing

TAKEOVERS = ("freeze", "takeover", "stale connection")


def _fences_then_binds(original: Any) -> Any:
    def broken(self: BrokerShell, *where: Any, **options: Any) -> None:
        open_log = options.get("open_log", FencedLog.open)

        def hasty(*arguments: Any, prepare: Callable[[], None], **rest: Any) -> FencedLog:
            log = open_log(*arguments, **rest)
            prepare()
            return log

        original(self, *where, **options | {"open_log": hasty})

    return broken


mutant(
    "shell: a broker fences before it binds",
    "a broker that cannot bind leaves the one before at work",
    (BrokerShell, "__init__", _fences_then_binds),
    faults=("address taken", *TAKEOVERS),
)
mutant(
    "shell: a broker passes over a claim that it has a successor",
    "who is told of a successor looks at the fence before it answers",
    (BrokerShell, "_perform", nothing),
    tests=("tests/shells/test_broker.py",),  # else it looks within a second by itself
)


def _every_second(original: Any) -> Any:
    def broken(self: ProducerShell) -> list[Settled]:
        settled: list[Settled] = original(self)
        self.__dict__["_taken"] = count = self.__dict__.get("_taken", 0) + len(settled)
        return settled[1:] if count % 2 else settled

    return broken


mutant(
    "shell: a producer loses verdicts",
    "each batch gets its verdict once",
    (ProducerShell, "take_settled", _every_second),
)


def _same_socket(original: Any) -> Any:
    def broken(self: ProducerShell, item: Any) -> None:
        if not isinstance(item, Reconnect):
            original(self, item)

    return broken


mutant(
    "shell: a producer keeps a dead socket",
    "a connection that is of no use is given up for another one",
    (ProducerShell, "_perform", _same_socket),
    faults=("stale connection",),
)
