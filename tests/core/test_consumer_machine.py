"""The consumer against a dumb model: the list of stored messages, and nothing else.

Whatever is killed, cut, lost, doubled or brought back: what the ledger holds is always the effect
of one prefix of that list, and outputs are a prefix of its image. At the end, when faults are over,
both are the whole list.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.core.consumer_work import Drain
from actors.errors import Fenced, HandlerFailed
from actors.limits import LEASE_MS
from actors.sim.cuts import KeepEverything, LoseEverything, Seeded
from tests.core.consumer_world import Member, World

IDS = [f"id{number}" for number in range(8)]


class ConsumerMachine(RuleBasedStateMachine):
    """One group; members come, fail and go."""

    @initialize(seed=st.integers(0, 9))
    def begin(self, seed: int) -> None:
        self.world = World(seed=seed)
        self.members: list[Member] = [self.world.member()]
        self.handled: dict[object, int] = {}

    def live(self) -> list[Member]:
        return [member for member in self.members if not member.actor.ended]

    def pick(self, index: int) -> Member | None:
        live = self.live()
        return live[index % len(live)] if live else None

    # --- the ordinary course ---------------------------------------------------------------------

    @rule(one=st.sampled_from(IDS))
    def send_explicit(self, one: str) -> None:
        self.world.send(one, id=one)

    @rule(count=st.integers(1, 4))
    def send_numbered(self, count: int) -> None:
        self.world.send("n", count=count)

    @rule(index=st.integers(0, 3), times=st.integers(1, 6))
    def turn(self, index: int, times: int) -> None:
        member = self.pick(index)
        for _ in range(times):
            if member is not None:
                self.world.step(member)

    @rule(milliseconds=st.sampled_from([1, 100, 600, 1100, 3100, LEASE_MS]))
    def wait(self, milliseconds: int) -> None:
        self.world.clock.advance(milliseconds)

    @rule(index=st.integers(0, 3), fail_at=st.none() | st.integers(0, 3), cut=st.booleans())
    def handle(self, index: int, fail_at: int | None, cut: bool) -> None:
        member = self.pick(index)
        if member is not None and member.calls:
            member.fail_at = fail_at
            member.answer(cut=cut)

    @rule(index=st.integers(0, 3))
    def join(self, index: int) -> None:
        if len(self.live()) < 3:
            self.members.append(self.world.member())

    @rule(index=st.integers(0, 3))
    def drain_one(self, index: int) -> None:
        member = self.pick(index)
        if member is not None:
            member.actor.post(Drain())

    # --- faults ----------------------------------------------------------------------------------

    @rule(index=st.integers(0, 3), lost_in=st.integers(0, 2), lost_out=st.integers(0, 2))
    def lose(self, index: int, lost_in: int, lost_out: int) -> None:
        member = self.pick(index)
        if member is not None:
            member.wire.lose_in, member.wire.lose_out = lost_in, lost_out

    @rule(index=st.integers(0, 3), double=st.integers(1, 3), which=st.integers(0, 40))
    def repeat(self, index: int, double: int, which: int) -> None:
        member = self.pick(index)
        if member is not None:
            member.wire.double_in = double
            member.wire.bring_back(which)

    @rule(index=st.integers(0, 3))
    def kill(self, index: int) -> None:
        member = self.pick(index)
        if member is not None:
            member.kill()

    @rule(policy=st.sampled_from([LoseEverything(), KeepEverything(), Seeded(3), Seeded(4)]))
    def power_cut(self, policy) -> None:
        self.world.power_cut(policy)
        self.members = []

    @precondition(lambda self: self.live())
    @rule(nth=st.integers(1, 12))
    def power_fails_soon(self, nth: int) -> None:
        """At the n-th disk call from now, in the middle of whatever happens then."""
        self.world.disk.fail_at = self.world.disk.calls + nth
        for _ in range(4):
            for member in self.live():
                if member.calls:
                    member.answer()
                self.world.step(member)
        self.world.disk.fail_at = None
        if self.world.disk.down:
            self.power_cut(LoseEverything())

    @rule()
    def restart_broker(self) -> None:
        self.world.restart_broker()

    @rule(index=st.integers(0, 3))
    def snapshot(self, index: int) -> None:
        member = self.pick(index)
        log = member.actor._driver.log if member is not None else None
        if member is not None and log is not None and log.end == log.durable_end:
            try:
                member.actor._driver.write_snapshot()
                member.turn()
            except Fenced:
                member.kill()

    # --- what must be true -----------------------------------------------------------------------

    @invariant()
    def only_known_ends(self) -> None:
        for member in self.members:
            assert member.error is None or isinstance(member.error, Fenced | HandlerFailed), (
                member.error
            )

    @invariant()
    def ledgers_hold_a_prefix(self) -> None:
        for member in self.live():
            if member.core.ledger.started is not None:
                self.world.check_prefix(member)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for member in self.live():
            member.kill()
        last = self.world.member()
        self.world.drain(last)
        self.world.check_whole(last)


ConsumerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestConsumerMachine = ConsumerMachine.TestCase
