"""Members of a group share the partitions of a topic: even shares, few moves, no member starves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from oncemq.core.broker import groups as groups_module
from oncemq.limits import (
    KEEP_MS,
    LEASE_MS,
    LEASE_RENEW_MS,
    MEMBER_MS,
    MOVE_PAUSE_MS,
    SETTLE_MS,
    STANDBY_RETRY_MS,
    STEADY_MS,
    Limits,
)
from oncemq.protocol import DescribeGroup, Granted, Join, Leave, Renew, Standby
from tests.core.broker.help import World

STEP_MS = 250
CALM_MS = 40_000  # after which everything must be shared, whatever went before


@dataclass(eq=False)
class Process:
    """One member as the broker sees it: asks every second, renews every two."""

    name: str
    owned: dict[int, int] = field(default_factory=dict)  # partition to epoch
    due: dict[int, int] = field(default_factory=dict)  # when it asks or renews next
    moves: int = 0  # partitions that it was asked to give back
    leases: int = 0
    frozen: bool = False
    dead: bool = False
    drain_ms: int = 0  # how long it takes to give a partition back
    leaving: dict[int, int] = field(default_factory=dict)
    incarnations: int = 0

    @property
    def member(self) -> bytes:
        return self.name.encode().ljust(16, b".")


class Group:
    """A broker with a topic of `partitions`, and processes that come and go."""

    def __init__(self, partitions: int, **bounds: int) -> None:
        self.world = World(limits=Limits(**bounds))
        self.world.hello()
        self.world.topic("t", partitions)
        self.partitions = partitions
        self.processes: list[Process] = []
        self.revoked_ms: dict[int, list[int]] = {}  # by partition: when it was asked back

    def add(self, name: str, **more: Any) -> Process:
        process = Process(name, **more)
        process.due = dict.fromkeys(range(self.partitions), self.world.clock.ms)
        self.processes.append(process)
        return process

    def join(self, process: Process, partition: int, name: str = "g", **changes: Any) -> Any:
        process.incarnations += 1
        epochs = [p.owned.get(partition, 0) for p in self.processes]
        incarnation = f"{process.name}-{process.incarnations}".encode().ljust(16, b"_")
        fields = {
            "incarnation": incarnation, "ledger_id": b"ledger%d" % partition, "topic_id_seen": b"",
            "log_id_seen": b"", "next_offset": 0, "highest_generation": max(epochs),
            "lock_held": False, "host": "h", "path": "/s", "label": process.name,
            "member": process.member, **changes,
        }  # fmt: skip
        return self.world.ask(Join(self.world.n, name, "t", partition, **fields))

    def turn(self, process: Process) -> None:
        now = self.world.clock.ms
        for partition, due in list(process.due.items()):
            if due > now or process.frozen or process.dead:
                continue
            if partition in process.leaving:
                if process.leaving[partition] <= now:
                    epoch = process.owned.pop(partition)
                    del process.leaving[partition]
                    self.world.ask(Leave(self.world.n, "g", "t", partition, epoch, 0))
                    process.due[partition] = now + STEP_MS
                    continue
                self.renew(process, partition)
            elif partition in process.owned:
                self.renew(process, partition)
            else:
                answer = self.join(process, partition)
                process.due[partition] = now + STANDBY_RETRY_MS
                if isinstance(answer, Granted):
                    process.owned[partition] = answer.epoch
                    process.due[partition] = now + LEASE_RENEW_MS
                    process.leases += 1
                else:
                    assert isinstance(answer, Standby), answer

    def renew(self, process: Process, partition: int) -> None:
        epoch, now = process.owned[partition], self.world.clock.ms
        process.due[partition] = now + LEASE_RENEW_MS
        answer = self.world.ask(Renew(self.world.n, "g", "t", partition, epoch, process.member, 0))
        if getattr(answer, "code", "") == "not_granted":
            process.owned.pop(partition)
            process.leaving.pop(partition, None)
            process.due[partition] = now
        elif answer.revoke and partition not in process.leaving:
            process.moves += 1
            self.revoked_ms.setdefault(partition, []).append(now)
            process.leaving[partition] = now + process.drain_ms
            process.due[partition] = now + STEP_MS

    def run(self, milliseconds: int) -> None:
        end = self.world.clock.ms + milliseconds
        while self.world.clock.ms < end:
            for process in self.processes:
                self.turn(process)
            self.world.clock.ms += STEP_MS

    def counts(self) -> dict[str, int]:
        return {p.name: len(p.owned) for p in self.processes if not (p.dead or p.frozen)}

    def check_shared(self) -> None:
        """Each partition has one owner, and each member its share."""
        live = [p for p in self.processes if not (p.dead or p.frozen)]
        owned = sorted(partition for p in live for partition in p.owned)
        assert owned == list(range(self.partitions)), self.counts()
        sizes = {len(p.owned) for p in live}
        assert max(sizes) - min(sizes) <= 1, self.counts()

    def moves(self) -> int:
        return sum(process.moves for process in self.processes)

    def restart(self) -> None:
        self.world.crash()
        self.world.hello()

    def described(self) -> Any:
        return self.world.ask(DescribeGroup(self.world.n, "g"))


def test_the_first_member_has_all_and_a_second_gets_half_with_as_few_moves() -> None:
    """Four of eight partitions move, each once, and then nothing moves any more."""
    group = Group(8)
    first = group.add("a")
    group.run(1_000)
    assert group.counts() == {"a": 8}
    group.add("b")
    group.run(STEADY_MS + 3 * LEASE_RENEW_MS)
    group.check_shared()
    assert (first.moves, group.moves()) == (4, 4)
    group.run(60_000)
    assert group.moves() == 4
    assert [event["to"] for event in group.world.events.named("group.revoked")] == ["b"] * 4


@pytest.mark.parametrize(
    ("members", "partitions"),
    [(2, 3), (3, 8), (4, 8), (5, 3), pytest.param(7, 16, marks=pytest.mark.slow)],
)
def test_everybody_has_the_share_rounded_down_or_up(members: int, partitions: int) -> None:
    """Also with more members than partitions; joining together or one after the other."""
    together = Group(partitions)
    for number in range(members):
        together.add(f"m{number}")
    together.run(CALM_MS)
    together.check_shared()
    after = Group(partitions)
    for number in range(members):
        after.add(f"m{number}")
        after.run(4_000)
    after.run(CALM_MS)
    after.check_shared()
    moved = after.moves()
    after.run(CALM_MS)
    assert after.moves() == moved


def test_shares_are_the_same_for_the_same_state() -> None:
    """Two brokers that heard the same decide the same, to the partition."""
    outcomes = []
    for _ in range(2):
        group = Group(8)
        for name in "abc":
            group.add(name)
            group.run(3_000)
        group.run(CALM_MS)
        outcomes.append([sorted(process.owned) for process in group.processes])
    assert outcomes[0] == outcomes[1]


def test_a_leaver_leaves_only_its_own_partitions_to_move() -> None:
    """What the others have stays where it is."""
    group = Group(8)
    for name in "abcd":
        group.add(name)
    group.run(CALM_MS)
    before = {process.name: set(process.owned) for process in group.processes}
    moved, last = group.moves(), group.processes[-1]
    for partition in list(last.owned):
        last.leaving[partition] = last.due[partition] = group.world.clock.ms
        group.turn(last)
    last.dead = True
    group.run(CALM_MS)
    group.check_shared()
    assert group.moves() == moved
    for process in group.processes[:-1]:
        assert before[process.name] <= set(process.owned)


def test_a_dead_members_partitions_go_round_after_the_lease() -> None:
    """Each partition goes to a member below its share; none is left without an owner."""
    group = Group(8)
    for name in "abc":
        group.add(name)
    group.run(CALM_MS)
    group.processes[0].dead = True
    group.run(LEASE_MS + KEEP_MS + 2_000)
    group.check_shared()


def test_a_frozen_member_finds_its_partitions_gone_and_gets_its_share_again() -> None:
    """Its leases run out, the others take over; back it gets its share, and no more."""
    group = Group(8)
    for name in "abcd":
        group.add(name)
    group.run(CALM_MS)
    frozen = group.processes[1]
    frozen.frozen = True
    group.run(LEASE_MS + KEEP_MS + 2_000)
    group.check_shared()
    frozen.frozen = False
    group.run(CALM_MS)
    group.check_shared()


def test_nothing_moves_after_a_restart_of_the_broker() -> None:
    """A restart loses the table of members, not the shares: each member keeps its partitions."""
    group = Group(8)
    for name in "abcd":
        group.add(name)
        group.run(2_000)
    group.run(CALM_MS)
    before = [dict(process.owned) for process in group.processes]
    for _ in range(3):
        group.restart()
        group.run(SETTLE_MS + 5_000)
    assert [process.owned for process in group.processes] == before


def test_nobody_is_asked_to_give_back_before_all_were_heard() -> None:
    """Right after a restart one member was heard and another was not: that is no reason to move."""
    group = Group(4)
    for name in "ab":
        group.add(name)
    group.run(CALM_MS)
    moved = group.moves()
    group.restart()
    late = group.processes[1]
    late.frozen = True
    group.run(SETTLE_MS - STEP_MS)
    assert group.moves() == moved
    late.frozen = False
    group.run(CALM_MS)
    assert group.moves() == moved


def test_an_owner_proved_dead_is_dead_for_whom_the_partition_is_kept() -> None:
    """The process that was killed starts again and proves it, but another member stands by.

    That one cannot prove it too: the lock that does is held. It must not wait for the lease, nor
    for the end of KEEP_MS, or a message that kills its process would take as long each time.
    """
    group = Group(1)
    owner = group.add("a")
    group.run(1_000)
    standby = group.add("b")
    group.run(2_000)
    owner.dead = True
    again = group.add("c")
    answer = group.join(again, 0, lock_held=True)
    assert (type(answer), answer.owner) == (Standby, "b")
    group.processes.remove(again)
    group.run(STANDBY_RETRY_MS + STEP_MS)
    assert list(standby.owned) == [0]


def test_a_free_partition_is_kept_for_who_is_below_its_share_and_not_for_long() -> None:
    """A member with its share must wait; if the other member does not come, it gets the partition."""
    group = Group(3)
    a, b = group.add("a"), group.add("b")
    group.run(CALM_MS)
    group.check_shared()
    richer, poorer = sorted((a, b), key=lambda one: -len(one.owned))
    spare = next(iter(richer.owned))
    group.world.ask(Leave(group.world.n, "g", "t", spare, richer.owned.pop(spare), 0))
    assert isinstance(group.join(poorer, spare), Granted)


def test_a_member_that_stopped_asking_holds_up_nobody() -> None:
    """A partition that was freed for a member which died waits for it at most KEEP_MS."""
    group = Group(2)
    a = group.add("a")
    group.run(1_000)
    b = group.add("b")
    group.run(STEADY_MS + 500)
    while not a.leaving:
        group.run(STEP_MS)
    b.dead = True
    group.run(KEEP_MS + STANDBY_RETRY_MS + STEP_MS)
    assert sorted(a.owned) == [0, 1]


def test_a_revocation_is_repeated_until_it_is_heard() -> None:
    """The answer to a renewal may be lost: the next one says the same."""
    group = Group(2)
    a = group.add("a")
    group.run(1_000)
    group.add("b")
    a.drain_ms = 10**9  # it hears and does not obey
    group.run(10_000)
    (partition,) = a.leaving
    ask = Renew(group.world.n, "g", "t", partition, a.owned[partition], a.member, 0)
    assert group.world.ask(ask).revoke
    assert len(group.world.events.named("group.revoked")) == 1


def test_a_slow_drain_moves_nothing_else() -> None:
    """A partition on its way out counts for the taker, so no second one is asked for."""
    group = Group(4)
    a = group.add("a", drain_ms=20_000)
    group.run(1_000)
    group.add("b")
    group.run(15_000)
    assert a.moves == 2
    group.run(20_000)
    group.check_shared()
    assert a.moves == 2


def test_who_comes_and_goes_moves_little() -> None:
    """A process that dies and returns every few seconds costs each partition a move now and then."""
    group = Group(8)
    group.add("a")
    group.run(2_000)
    rounds = 10
    for number in range(rounds):
        flapping = group.add(f"f{number}")
        group.run(3_000)
        flapping.dead = True
        group.run(1_000)
    assert group.moves() <= rounds * 4_000 // MOVE_PAUSE_MS * 8
    group.run(LEASE_MS + CALM_MS)
    group.check_shared()


def test_a_partition_is_not_taken_twice_in_a_short_time() -> None:
    """A process that starts and stops in good order all the time does not have it moved each time."""
    group = Group(2)
    group.add("a")
    group.run(2_000)
    for number in range(12):
        guest = group.add(f"g{number}")
        guest.due = {0: group.world.clock.ms}  # it wants no other one
        group.run(4_250)
        for partition in list(guest.owned):
            guest.leaving[partition] = guest.due[partition] = group.world.clock.ms
        group.turn(guest)
        guest.dead = True
        group.run(250)
    (times,) = group.revoked_ms.values()
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) > 1
    assert min(gaps) >= MOVE_PAUSE_MS, gaps


def test_a_guest_of_a_moment_moves_nothing() -> None:
    """A process that dies right after its start was never worth a move."""
    group = Group(4)
    group.add("a")
    group.run(2 * LEASE_RENEW_MS)
    for number in range(5):
        guest = group.add(f"g{number}")
        group.run(STEADY_MS - STEP_MS)
        guest.dead = True
        group.run(2 * LEASE_RENEW_MS)
    assert group.moves() == 0


def test_a_newcomer_waits_until_a_new_broker_knows_everybody() -> None:
    """In the first seconds of a broker no partition is asked back, not even for a waiting member."""
    group = Group(4)
    group.add("a")
    group.run(2_000)
    group.restart()
    group.add("b")
    group.run(SETTLE_MS - STEP_MS)
    assert group.moves() == 0
    group.run(CALM_MS)
    group.check_shared()


def test_a_member_without_an_id_keeps_what_it_has() -> None:
    """A process of protocol version 1 takes free partitions and keeps them."""
    group = Group(2)
    old = group.add("old")
    for partition in range(2):
        assert isinstance(group.join(old, partition, member=b""), Granted)
    new = group.add("new")
    old.due.clear()
    for _ in range(10):
        for partition in range(2):
            world = group.world
            answer = world.ask(Renew(world.n, "g", "t", partition, 1))
            assert (answer.revoke, answer.shared) == (False, False)
        group.run(LEASE_RENEW_MS)
    assert new.owned == {}


def test_a_wrong_member_id_is_refused() -> None:
    """An id is 16 bytes, or none."""
    group = Group(1)
    assert group.join(group.add("a"), 0, member=b"short").code == "protocol"


def test_members_are_bounded() -> None:
    """A member above the bound is not recorded; it gets free partitions. A lost member makes room."""
    group = Group(4, members_max=2, asked_max=3)
    for name in "abc":
        group.add(name)
    group.run(10_000)
    assert [label for _, _, label, _, _ in group.described().members] == ["a", "b"]
    group.processes[0].dead = True
    group.run(LEASE_MS + MEMBER_MS + CALM_MS)
    assert [label for _, _, label, _, _ in group.described().members] == ["b", "c"]
    owned = sorted(partition for p in group.processes[1:] for partition in p.owned)
    assert owned == [0, 1, 2, 3]


def test_groups_without_end_cost_no_memory() -> None:
    """Who invents groups and members fills the table to its bound and not beyond."""
    group = Group(1, members_max=3)
    for number in range(20):
        guest = group.add(f"g{number}")
        assert isinstance(group.join(guest, 0, f"group-{number}"), Granted)
    assert len(group.world.core._membership.balance._shared) == 3


def test_the_description_shows_members_owners_and_progress() -> None:
    """Members, owners, committed offsets, and partitions asked back."""
    group = Group(2)
    a = group.add("a")
    group.run(1_000)
    group.add("b")
    a.drain_ms = 10**9
    group.run(8_000)
    described = group.described()
    assert [(row[0], row[2], row[3]) for row in described.members] == [("t", "a", 2), ("t", "b", 0)]
    assert [row[:2] for row in described.partitions] == [("t", 0), ("t", 1)]
    assert [row[10] for row in described.partitions].count("b") == 1
    assert {row[7] for row in described.partitions} == {a.member}
    assert group.world.ask(DescribeGroup(group.world.n, "none")).partitions == ()
    assert group.world.ask(DescribeGroup(group.world.n, "a/b")).code == "invalid_name"


def test_whether_the_work_is_shared_is_told() -> None:
    """Grant and each renewal say whether the topic is shared."""
    group = Group(2)
    a = group.add("a")
    group.run(1_000)
    renew = Renew(group.world.n, "g", "t", 0, a.owned[0], a.member, 0)
    assert not group.world.ask(renew).shared
    b = group.add("b")
    group.run(10_000)
    for process in (a, b):
        ((partition, epoch),) = process.owned.items()
        renew = Renew(group.world.n, "g", "t", partition, epoch, process.member, 0)
        assert group.world.ask(renew).shared


def test_a_standby_is_told_when_its_owner_is_done() -> None:
    """What the owner has committed reaches the end: a waiting process has nothing to wait for."""
    group = Group(1)
    world = group.world
    a, b = group.add("a"), group.add("b")
    group.run(1_000)
    owner, other = (a, b) if a.owned else (b, a)
    assert group.join(other, 0).idle
    world.producer()
    world.send(0, "x", "y")
    assert not group.join(other, 0).idle
    for committed, idle in ((1, False), (2, True)):
        epoch = owner.owned[0]
        world.ask(Renew(world.n, "g", "t", 0, epoch, owner.member, committed))
        assert group.join(other, 0, next_offset=committed).idle is idle


@pytest.mark.parametrize("seed", range(3))
def test_after_any_history_everything_is_shared(seed: int) -> None:
    """Members start, leave, die, freeze and return, the broker restarts: then all settles evenly."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    group = Group(rng.choice((1, 3, 8, 13)))
    group.add("m0")
    for number in range(1, 25):
        living = [p for p in group.processes if not p.dead]
        kind = rng.choice(("add", "die", "freeze", "thaw", "restart", "slow"))
        victim = rng.choice(living)
        if kind == "add" and len(living) < 6:
            group.add(f"m{number}")
        elif kind == "die" and len(living) > 1:
            victim.dead = True
        elif kind == "freeze":
            victim.frozen = True
        elif kind == "thaw":
            victim.frozen = False
        elif kind == "restart":
            group.restart()
        elif kind == "slow":
            victim.drain_ms = rng.choice((0, 3_000, 12_000))
        group.run(rng.choice((250, 1_000, 4_000, 11_000)))
    for process in group.processes:
        process.frozen = False
        process.drain_ms = 0
    group.run(LEASE_MS + CALM_MS)
    group.check_shared()
    moved = group.moves()
    group.run(CALM_MS)
    assert group.moves() == moved, "calm means that nothing moves"


def test_leases_know_their_member_after_a_renewal() -> None:
    """After a restart an owner is known by its first renewal."""
    group = Group(1)
    a = group.add("a")
    group.run(1_000)
    group.restart()
    table: groups_module.GroupTable = group.world.core.state.groups
    assert table.leases["g", "t", 0].member == b""
    group.run(2 * LEASE_RENEW_MS)
    assert table.leases["g", "t", 0].member == a.member
