"""The consumer against a dumb model: the list of stored messages, and nothing else.

Whatever is killed, cut, lost, doubled or brought back: what the ledger holds is always the effect
of one prefix of that list, and outputs are a prefix of its image. At the end, when faults are over,
both are the whole list. A life is a list of acts with numbers, so that a failing one shrinks.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncemq.core.consumer.work import Drain
from oncemq.errors import Fenced, HandlerFailed
from oncemq.limits import LEASE_MS
from oncemq.sim.disk.cuts import KeepEverything, LoseEverything, Seeded
from tests.core.consumer.world import Member, World

pytestmark = pytest.mark.slow

WAITS_MS = (1, 100, 600, 1100, 3100, LEASE_MS)
CUTS = (LoseEverything(), KeepEverything(), Seeded(3), Seeded(4))


class Life:
    """One group; members come, fail and go. Every act takes three small numbers."""

    def __init__(self) -> None:
        self.world = World()
        self.members: list[Member] = []
        self.join(0, 0, 0)

    def live(self) -> list[Member]:
        return [member for member in self.members if not member.actor.ended]

    def pick(self, a: int) -> Member:
        """A live member; a new one if all are gone."""
        if not self.live():
            self.members.append(self.world.member())
        live = self.live()
        return live[a % len(live)]

    # --- the ordinary course ---

    def send_explicit(self, a: int, b: int, c: int) -> None:
        self.world.send(f"v{b}", id=f"id{b}")

    def send_batch(self, a: int, b: int, c: int) -> None:
        self.world.send_batch(1 + b % 6)

    def work(self, a: int, b: int, c: int) -> None:
        """Turns until a call is out; it raises at message b or is cut; then c more turns."""
        member = self.pick(a)
        for _ in range(60):
            if member.calls or member.actor.ended:
                break
            happened = member.turn()
            if not (self.world.broker.turn(0) or happened):
                self.world.clock.advance(50)
        if member.actor.ended or not member.calls:
            return
        member.fail_at = b % 3 if b < 5 else None
        member.answer(cut=b in {2, 6})
        for _ in range(c % 3):
            member.turn()

    def turn(self, a: int, b: int, c: int) -> None:
        for _ in range(1 + b):
            self.world.step(self.pick(a))

    def wait(self, a: int, b: int, c: int) -> None:
        self.world.clock.advance(WAITS_MS[b % len(WAITS_MS)])

    def join(self, a: int, b: int, c: int) -> None:
        if len(self.live()) < 3:
            self.members.append(self.world.member())

    def drain_one(self, a: int, b: int, c: int) -> None:
        self.pick(a).actor.post(Drain())

    def snapshot(self, a: int, b: int, c: int) -> None:
        member = self.pick(a)
        log = member.actor._driver.log
        if log is not None and log.end == log.durable_end:
            try:
                member.actor._driver.write_snapshot()
            except Fenced:
                member.kill()
            member.turn()

    def take_over(self, a: int, b: int, c: int) -> None:
        """A member is frozen until its lease is over; another one takes its place and works."""
        frozen = self.pick(a)
        for member in self.live():
            if member is not frozen:
                member.kill()
        if b % 2:
            self.send_batch(0, b, 0)
        self.world.clock.advance(LEASE_MS + 1)
        taker = self.world.member()
        self.members.append(taker)
        self.world.drain(taker)
        if frozen.calls and not frozen.actor.ended:
            frozen.answer()

    # --- faults ---

    def lose(self, a: int, b: int, c: int) -> None:
        wire = self.pick(a).wire
        wire.lose_in, wire.lose_out = b % 3, c % 3

    def repeat(self, a: int, b: int, c: int) -> None:
        wire = self.pick(a).wire
        wire.double_in = c
        wire.bring_back(b)

    def kill(self, a: int, b: int, c: int) -> None:
        self.pick(a).kill()

    def power_cut(self, a: int, b: int, c: int) -> None:
        self.world.power_cut(CUTS[b % len(CUTS)])
        self.members = []

    def power_fails_soon(self, a: int, b: int, c: int) -> None:
        """At the b-th disk call from now, in the middle of any step."""
        member = self.pick(a)
        self.world.disk.fail_at = self.world.disk.calls + 1 + b
        self.world.disk.fail_halfway = bool(c % 2)
        for _ in range(4):
            if member.calls and not member.actor.ended:
                member.answer()
            self.world.step(member)
        self.world.disk.fail_at = None
        if self.world.disk.down:
            self.power_cut(0, c, 0)

    def restart_broker(self, a: int, b: int, c: int) -> None:
        self.world.restart_broker()

    # --- what must be true ---

    def check(self) -> None:
        for member in self.members:
            error = member.error
            assert error is None or isinstance(error, Fenced | HandlerFailed), error
        for member in self.live():
            if member.core.ledger.started is not None:
                self.world.check_prefix(member)

    def end(self) -> None:
        for member in self.live():
            member.kill()
        last = self.world.member()
        self.world.drain(last)
        self.world.check_whole(last)


ACTS = [
    *("work",) * 8,
    *("send_batch",) * 4,
    *("send_explicit",) * 3,
    *("turn",) * 3,
    *("snapshot", "join", "lose", "repeat", "kill", "power_fails_soon", "take_over") * 2,
    *("wait", "drain_one", "power_cut", "restart_broker"),
]
acts = st.tuples(st.sampled_from(ACTS), st.integers(0, 2), st.integers(0, 9), st.integers(0, 5))
TOTALS: Counter[str] = Counter()  # events of all lives


@settings(max_examples=25)
@given(st.lists(acts, min_size=30, max_size=70))
def live_one_life(life_acts: list[tuple[str, int, int, int]]) -> None:
    life = Life()
    for act, a, b, c in life_acts:
        getattr(life, act)(a, b, c)
        life.check()
    life.end()
    TOTALS.update(life.world.events.names())


def test_lives_of_a_group_against_the_model() -> None:
    """Every prefix holds and the whole comes out; a run counts only if enough has happened."""
    TOTALS.clear()
    live_one_life()
    for event, least in {
        "commit.synced": 100,
        "handler.raised": 10,
        "consumer.granted": 80,
        "consumer.fenced": 3,
        "snapshot.written": 10,
        "output.acked": 100,
    }.items():
        assert TOTALS[event] >= least, f"{event}: {TOTALS[event]}, this run proves little {TOTALS}"
