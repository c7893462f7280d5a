"""What a seed stands for: the actors of a world, its sizes, and which faults it meets how often.

Swarm testing: each seed switches each fault fully on or off and weighs the rest wildly, because a
run in which everything goes wrong at once never gets to the bugs that need one thing to go wrong
and all else to work.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from ..limits import CRASH_RETRIES_DEFAULT, LIMITS
from .faults.kinds import FAULT_KINDS
from .processes.handler import Group

# Kinds of databases: a file; a server; one that lets nobody end sessions of others.
FILE = "file"
SERVER = "server"
GUARDED = "guarded server"
DATABASE_KINDS = (FILE, SERVER, GUARDED)

TABLE_ODDS = 0.35
ALONE_ODDS = 0.3  # that nothing goes wrong but what has to do with databases
RETENTION_ODDS = 0.4
KEYED_ODDS = 0.3  # of a seed that has a group with state by key
CONCURRENCIES = (2, 3, 8)
SOLITARIES = (3, 5, 8)  # messages
TABLES_MS = 20_000  # two leases: an owner that stands still is replaced


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided before a run. Times are milliseconds of simulated time."""

    seed: int
    safety_ms: int
    faults: dict[str, float]  # name to mean time between two strikes
    partitions: dict[str, int]  # of each topic
    groups: tuple[Group, ...]
    standbys: int  # members of each group partition besides the first
    files: int  # producers with a name and numbered rows
    rivals: int  # processes that fight for one name
    webs: int  # anonymous workers that share explicit ids
    named_web: bool  # one more user with explicit ids and a name
    quota: int  # messages of each user (for each partition, with numbered rows)
    one_host: bool  # broker and consumers on one machine
    sector_bytes: int  # what a power cut keeps or loses as one
    segment_bytes: int
    ledger_segment_bytes: int
    snapshot_every_bytes: int
    ledger_snapshot_every_bytes: int
    submit_mean_ms: int
    handler_mean_ms: int
    slow_handlers: float  # odds of a handler call longer than a lease
    partial_commits: float  # odds of a handler run that comes back before its end
    crash_retries: int = CRASH_RETRIES_DEFAULT
    # Groups whose ledgers are tables of a database, and of what kind it is.
    tables: dict[str, str] = field(default_factory=dict)
    relays: int = 0  # processes that relay the outbox of one more user; 0: there is none
    solitary_max: int = LIMITS.solitary_messages_max
    # What topics retain, where that is bounded: what groups read goes once all have processed it.
    retain: dict[str, str] = field(default_factory=dict)
    index_step_bytes: int = LIMITS.offset_index_step_bytes
    keep_bytes_min: int = LIMITS.keep_bytes_min

    @classmethod
    def of(cls, seed: int) -> Plan:
        rng = random.Random(f"plan {seed}")
        chained = rng.random() < 0.6
        groups = [Group("bill", "orders", "invoices" if chained else "")]
        if chained and rng.random() < 0.7:
            groups.append(Group("ship", "invoices", "parcels" if rng.random() < 0.5 else ""))
        if rng.random() < 0.3:
            groups.append(Group("audit", "orders", ""))
        topics = {"orders": rng.choice((1, 1, 2, 3))}
        for group in groups:
            if group.output:
                topics[group.output] = rng.choice((1, 1, 2))
        standbys = 0
        members = random.Random(f"plan {seed} members")  # its own, as below
        if members.random() < 0.4:  # members that have something to share
            topics["orders"] = members.choice((2, 3, 4))
            standbys = members.choice((1, 2))
        relays = random.Random(f"plan {seed} relays").choice((0, 0, 0, 1, 2))
        tables = {}
        sink = random.Random(f"plan {seed} sink")
        if sink.random() < TABLE_ODDS:
            tables[sink.choice(groups).name] = sink.choice(DATABASE_KINDS)
        alone = bool(tables) and sink.random() < ALONE_ODDS
        faults = {}
        for name, kind in FAULT_KINDS.items():
            if (kind.of_tables and not tables) or (kind.of_outbox and not relays):
                continue
            if alone and not kind.of_tables:
                continue
            draw = random.Random(f"plan {seed} {name}")  # its own: a new kind moves no other
            low, high = kind.mean_ms
            if draw.random() < kind.odds:
                faults[name] = low * (high / low) ** draw.random()
        groups = _with_keyed(seed, groups)
        files, rivals, webs = rng.choice(((1, 0, 1), (0, 2, 1), (1, 2, 0), (1, 2, 2), (0, 0, 2)))
        return cls(
            seed=seed,
            safety_ms=max(rng.choice((10_000, 20_000, 30_000)), TABLES_MS if tables else 0),
            faults=faults,
            partitions=topics,
            groups=tuple(groups),
            standbys=max(rng.choice((0, 1, 1)), standbys),
            files=files,
            rivals=rivals,
            webs=webs,
            named_web=rng.random() < 0.2,
            quota=rng.choice((20, 40, 60)),
            one_host=rng.random() < 0.4,
            sector_bytes=rng.choice((64, 512, 512, 4096)),
            segment_bytes=rng.choice((2_000, 8_000, 60_000)),
            ledger_segment_bytes=rng.choice((1_000, 4_000, 60_000)),
            snapshot_every_bytes=rng.choice((1_500, 6_000, 30_000)),
            ledger_snapshot_every_bytes=rng.choice((700, 3_000, 30_000)),
            submit_mean_ms=rng.choice((50, 200, 600)),
            handler_mean_ms=rng.choice((1, 20, 100)),
            slow_handlers=rng.choice((0.0, 0.0, 0.01)),
            partial_commits=rng.choice((0.0, 0.2, 0.6)),
            crash_retries=_crash_retries(seed, faults),
            tables=tables,
            relays=relays,
            solitary_max=_solitary_of(seed, groups),
            **_retention_of(seed, groups),
        )

    @property
    def with_effects(self) -> bool:
        """Whether handlers call the world outside.

        Not where a ledger is copied: the copy knows nothing of calls that its original made.
        """
        return "effect orders" in self.faults and "copied ledger" not in self.faults

    @property
    def with_horizons(self) -> bool:
        """Whether one more topic forgets ids."""
        return "horizons" in self.faults

    def without(self, fault: str) -> Plan:
        return replace(self, faults={n: m for n, m in self.faults.items() if n != fault})

    def in_order(self) -> Plan:
        groups = tuple(replace(group, concurrency=0) for group in self.groups)
        return replace(self, groups=groups, solitary_max=LIMITS.solitary_messages_max)

    def submit_ms(self, rng: random.Random) -> int:
        return 1 + int(rng.expovariate(1 / self.submit_mean_ms))

    def handler_ms(self, rng: random.Random) -> int:
        if self.slow_handlers and rng.random() < self.slow_handlers:
            return rng.randint(5_000, 15_000)
        return int(rng.expovariate(1 / self.handler_mean_ms))

    def job_ms(self, rng: random.Random) -> int:
        if self.slow_handlers and rng.random() < self.slow_handlers / 4:
            return rng.randint(5_000, 15_000)
        return int(rng.expovariate(1 / (2 * self.handler_mean_ms)))

    def commit_after(self, rng: random.Random, *, cut: bool) -> int:
        if cut:
            return 1
        if rng.random() < self.partial_commits:
            return rng.randint(1, 5)
        return 1 << 30


def _with_keyed(seed: int, groups: list[Group]) -> list[Group]:
    """Return the groups of a seed, in some of which one has a state for each key."""
    rng = random.Random(f"plan {seed} keyed")  # its own: the other draws of old seeds stay
    if rng.random() >= KEYED_ODDS:
        return groups
    chosen = rng.randrange(len(groups))
    changed = replace(groups[chosen], concurrency=rng.choice(CONCURRENCIES))
    return [changed if number == chosen else one for number, one in enumerate(groups)]


def _retention_of(seed: int, groups: list[Group]) -> dict[str, Any]:
    """Return which topics of a seed are bounded, and how small the pieces are in which they go."""
    rng = random.Random(f"plan {seed} retention")
    if rng.random() >= RETENTION_ODDS:
        return {}
    read = {group.topic for group in groups}
    retain = {topic: "processed" for topic in sorted(read) if rng.random() < 0.7}
    for topic in sorted({group.output for group in groups} - read - {""}):
        retain[topic] = rng.choice(("500B", "2KB"))
    return {
        "retain": retain,
        "index_step_bytes": rng.choice((1, 1, 800)),
        "keep_bytes_min": rng.choice((600, 3_000)),
    }


def _solitary_of(seed: int, groups: list[Group]) -> int:
    """Return how many messages run alone after an unclean end: few, so that others run together.

    In a short run of many deaths there would be hardly anything but solitary messages.
    """
    if not any(group.concurrency for group in groups):
        return LIMITS.solitary_messages_max
    return random.Random(f"plan {seed} solitary").choice(SOLITARIES)


def _crash_retries(seed: int, faults: dict[str, float]) -> int:
    """Few, so that killers and unlucky ones are parked in a short run.

    Not where a ledger is copied: whether a healthy message is parked depends on the kills that one
    copy has seen and the other has not, so the two would send different things.
    """
    if "copied ledger" in faults:
        return CRASH_RETRIES_DEFAULT
    return random.Random(f"plan {seed} crash retries").choice((1, 2, CRASH_RETRIES_DEFAULT))
