"""The broker against a dumb model with full sets, over lost, doubled and late requests and restarts.

The model knows for each partition the list of messages, for each topic every id, and for each
producer every number. It is told of a request when the broker judges it, and must agree with each
verdict. At any moment the broker may be killed (what was not synced is gone) or stopped cleanly,
with snapshots on the way; what was answered must then still be true.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from oncemq.limits import Limits
from oncemq.protocol import Failure, Produced
from tests.core.broker.help import World, batch_of, batch_with_ids, runs

pytestmark = pytest.mark.slow

PARTITIONS = 2
IDS = [f"id{number}" for number in range(14)]


class BrokerMachine(RuleBasedStateMachine):
    """One broker, two named producers, one stream of explicit ids."""

    @initialize()
    def begin(self) -> None:
        tight = Limits(id_table_ids=3, offset_part_bytes=700, offset_index_step_bytes=300)
        self.world = World(snapshot_every=1500, limits=tight)
        self.world.hello()
        self.world.topic(partitions=PARTITIONS)
        self.logs: list[list[str]] = [[] for _ in range(PARTITIONS)]
        self.ids: dict[str, tuple[int, int, str]] = {}  # id: partition, offset, value
        self.numbers: dict[tuple[str, int], list[tuple[int, str]]] = {}  # offset, value
        self.epochs: dict[str, int] = {}
        self.sessions: dict[bytes, int] = {}
        self.late: list[tuple[Any, Any, Any]] = []  # requests that the network still holds
        self.nonce = 0

    # --- producers -------------------------------------------------------------------------------

    @rule(name=st.sampled_from("pq"))
    def take_over(self, name: str) -> None:
        self.nonce += 1
        ready = self.world.producer(name, self.nonce.to_bytes(16, "big"))
        self.epochs[name] = self.epochs.get(name, 0) + 1
        assert ready.epoch == self.epochs[name]
        expected = {
            ("t", partition, len(numbers))
            for (owner, partition), numbers in self.numbers.items()
            if owner == name and numbers
        }
        assert {row[:3] for row in ready.partitions} == expected

    @rule(
        name=st.sampled_from("pq"),
        partition=st.integers(0, PARTITIONS - 1),
        back=st.integers(-2, 6),
        values=st.lists(st.sampled_from("xyz"), min_size=1, max_size=4),
        honest=st.booleans(),
        stale=st.integers(0, 5),
        copies=st.integers(1, 2),
    )
    def send_numbers(
        self,
        name: str,
        partition: int,
        back: int,
        values: list[str],
        honest: bool,
        stale: int,
        copies: int,
    ) -> None:
        """Numbers from before, at or behind the end; a resend repeats the bodies or lies."""
        stored = self.numbers.get((name, partition), [])
        first = max(0, len(stored) - back)
        if honest:
            values = [
                stored[first + step][1] if first + step < len(stored) else value
                for step, value in enumerate(values)
            ]
        epoch = self.epochs.get(name, 0) - (stale == 0)
        batch = batch_of(*values)
        request = self.world.numbered(
            first, batch, producer=name, partition=partition, epoch=max(0, epoch)
        )
        self.deliver(request, batch, values, copies)

    def judge_numbers(self, request: Any, values: list[str], answer: Any) -> None:
        if request.epoch != self.epochs.get(request.producer, 0) or request.epoch == 0:
            never = request.producer not in self.epochs
            assert answer.code == ("unknown_producer" if never else "fenced")
            return
        stored = self.numbers.setdefault((request.producer, request.partition), [])
        if request.first_sequence > len(stored):
            assert (answer.code, answer.expected) == ("gap", len(stored))
            return
        verdicts = []
        for step, value in enumerate(values):
            number = request.first_sequence + step
            if number < len(stored):
                offset, original = stored[number]
                verdicts.append(("duplicate" if original == value else "conflict", offset))
            else:
                log = self.logs[request.partition]
                stored.append((len(log), value))
                verdicts.append(("stored", len(log)))
                log.append(value)
        assert flat(answer) == verdicts

    # --- explicit ids ----------------------------------------------------------------------------

    @rule(
        partition=st.integers(0, PARTITIONS - 1),
        items=st.lists(
            st.tuples(st.sampled_from(IDS), st.sampled_from("xy")), min_size=1, max_size=5
        ),
        session=st.sampled_from([b"S" * 16, b"T" * 16]),
        ahead=st.integers(-2, 1),
        copies=st.integers(1, 2),
    )
    def send_ids(
        self,
        partition: int,
        items: list[tuple[str, str]],
        session: bytes,
        ahead: int,
        copies: int,
    ) -> None:
        """Any ids, known or not, twice in a batch or not, at a counter near the right one."""
        batch = batch_with_ids(items)
        counter = max(0, self.sessions.get(session, 0) + ahead)
        request = self.world.explicit(counter, batch, session=session, partition=partition)
        self.deliver(request, batch, items, copies)

    def judge_ids(self, request: Any, items: list[tuple[str, str]], answer: Any) -> None:
        expected = self.sessions.get(request.session)
        if expected is None and request.counter > 0:
            assert answer.code == "unknown_session"
            return
        if expected is not None and request.counter > expected:
            assert (answer.code, answer.expected) == ("gap", expected)
            return
        is_next = expected is None or request.counter == expected
        if not is_next and any(key not in self.ids for key, _ in items):
            assert answer.code == "unknown_session"
            return
        verdicts = []
        for key, value in items:
            log = self.logs[request.partition]
            if key not in self.ids:
                self.ids[key] = (request.partition, len(log), value)
                verdicts.append(("stored", len(log)))
                log.append(value)
            else:
                partition, offset, original = self.ids[key]
                told = offset if partition == request.partition else -1
                verdicts.append(("duplicate" if original == value else "conflict", told))
        if is_next:
            self.sessions[request.session] = request.counter + 1
        assert flat(answer) == verdicts

    # --- the network and the process -------------------------------------------------------------

    def deliver(self, request: Any, batch: Any, content: Any, copies: int) -> None:
        self.late.append((request, batch, content))
        self.bring([(request, batch, content)] * copies)

    def bring(self, chosen: list[tuple[Any, Any, Any]]) -> None:
        """Let requests arrive in one turn; answers leave in the same turn, in the same order."""
        self.world.take()
        for request, batch, _ in chosen:
            self.world.put(request, batch.raw)
        self.world.turn()
        answers = self.world.take()
        assert len(answers) == len(chosen)
        for (request, _, content), answer in zip(chosen, answers, strict=True):
            assert answer.request == request.request
            self.judge(request, content, answer)
        self.world.settle()

    def judge(self, request: Any, content: Any, answer: Any) -> None:
        assert isinstance(answer, Produced | Failure)
        if request.first_sequence >= 0:
            self.judge_numbers(request, content, answer)
        else:
            self.judge_ids(request, content, answer)

    @rule(data=st.data())
    def deliver_late_copies(self, data: st.DataObject) -> None:
        """Old requests arrive again, several in one turn, in any order."""
        if not self.late:
            return
        picks = data.draw(st.lists(st.integers(0, len(self.late) - 1), min_size=1, max_size=4))
        self.bring([self.late[pick] for pick in picks])

    @rule(unsynced=st.booleans(), clean=st.booleans())
    def restart(self, unsynced: bool, clean: bool) -> None:
        """The broker dies, perhaps with a request judged and appended but not synced."""
        if unsynced and self.epochs.get("p"):
            stored = self.numbers.get(("p", 0), [])
            batch = batch_of("lost")
            request = self.world.numbered(len(stored), batch, epoch=self.epochs["p"])
            self.world.put(request, batch.raw)
            self.world.log.sync = _die
            try:
                self.world.turn()
            except _DeathError:
                self.world.take()
            clean = False
        self.world.crash(clean=clean)
        self.world.hello()
        self.sessions.clear()

    @invariant()
    def nothing_is_lost_doubled_or_moved(self) -> None:
        """The partitions hold exactly what the model says, at the same offsets."""
        if not hasattr(self, "world"):
            return
        for partition, log in enumerate(self.logs):
            assert self.world.stored(partition=partition) == log

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.driver.close()


class _DeathError(Exception):
    pass


def _die() -> int:
    raise _DeathError


def flat(answer: Any) -> list[tuple[str, int]]:
    return [
        (its, at if at < 0 else at + step)
        for count, its, at in runs(answer)
        for step in range(count)
    ]


TestBrokerMachine = BrokerMachine.TestCase
TestBrokerMachine.settings = settings(stateful_step_count=30)
