"""What runs aside, and the simulated outbox with the relay of production on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oncemq.cli.sim_relay import make_relay
from oncemq.sim.disk.machine import SimulatedCrash
from oncemq.sim.oracles.log import BrokerOracle, StoredMessage
from oncemq.sim.plan import Plan
from oncemq.sim.processes.aside import Aside
from oncemq.sim.processes.outbox import AFTER, BEFORE, Outbox, OutboxLost, OutboxRow
from oncemq.sim.run import run_plan
from oncemq.sim.trace import Violation


def row(place: int, value: bytes = b"v") -> OutboxRow:
    return OutboxRow(place, "orders", b"sout-%d" % place, None, value)


def stored(outbox: Outbox, one: OutboxRow, body: bytes | None = None) -> None:
    message = StoredMessage(one.identity, body or one.body, "", -1, 0)
    outbox.oracle.by_identity[one.identity] = (0, message)


def test_only_one_of_both_runs() -> None:
    """Each hand-over is complete: the order of all lines is that of one thread."""
    lines: list[str] = []

    def work() -> None:
        for number in range(3):
            lines.append(f"aside {number}")
            program.wait()

    program = Aside(work)
    for number in range(3):
        lines.append(f"world {number}")
        program.go_on()
    assert lines == [f"{who} {number}" for number in range(3) for who in ("world", "aside")]
    program.go_on()
    assert program.over


def test_a_program_that_is_killed_goes_through_its_finally() -> None:
    """It ends where it waits, and what it raises then is nobody's concern."""
    ends: list[str] = []

    def work() -> None:
        try:
            program.wait()
        except SimulatedCrash:
            ends.append("killed")
            raise

    program = Aside(work)
    program.go_on()
    program.kill()
    assert ends == ["killed"]
    never_begun = Aside(work)
    never_begun.kill()
    assert ends == ["killed"]


def test_what_a_program_raises_comes_out_of_go_on() -> None:
    """Also what the world's own checks raise inside of it."""

    def work() -> None:
        raise Violation("rule", "broken")

    program = Aside(work)
    with pytest.raises(Violation, match="broken"):
        program.go_on()
    program.kill()


@pytest.mark.parametrize(("lost", "left"), [(BEFORE, [1]), (AFTER, [])])
def test_an_answer_is_lost_before_or_after_the_commit(lost: str, left: list[int]) -> None:
    """Who asked cannot tell which; the next one is answered."""
    outbox = Outbox(BrokerOracle())
    outbox.waiting[1] = row(1)
    stored(outbox, row(1))
    outbox.next_settle = lost
    with pytest.raises(OutboxLost):
        outbox.settle([1], [])
    assert [one.place for one in outbox.read()] == left
    assert outbox.settle([1], []) == len(left)


def test_rows_leave_for_the_right_reason_only() -> None:
    """Not stored: not taken out. Stored as it is: not refused. Another body there: not acked."""
    outbox = Outbox(BrokerOracle())
    outbox.waiting[1] = row(1)
    with pytest.raises(Violation, match="outbox emptied"):
        outbox.settle([1], [])
    for body, acked, failed in ((None, [], [1]), (b"another", [1], [])):
        outbox.waiting[1] = row(1)
        stored(outbox, row(1), body)
        with pytest.raises(Violation, match="outbox verdict"):
            outbox.settle(acked, failed)


def test_relays_do_their_work_in_a_quiet_world() -> None:
    """Two at once, transactions that end late or never: all that is committed is stored once."""
    plan = replace(Plan.of(1), faults={}, rivals=0, webs=0, files=0, named_web=False, tables={})
    plan = replace(plan, relays=2, quota=40, safety_ms=2_000)
    result = run_plan(plan, make_relay)
    assert result.rule == "", result.failure
    assert result.counts["relay.settled"] > 0
    again = run_plan(plan, make_relay)
    assert again.trace_hash == result.trace_hash
