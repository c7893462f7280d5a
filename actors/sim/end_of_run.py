"""The end of a run: mend all, wait until all is done, then read what is really on the disks."""

from __future__ import annotations

from collections import Counter
from functools import partial

from ..proof.parse.log import Log
from ..proof.parse.tables import TableLog
from ..proof.verify.verify import Look, broker_log, prove
from ..records import GroupGranted
from .disk.cuts import LoseEverything
from .disk.disk import SimDisk
from .oracles.log import read_back
from .processes.broker import DATA
from .processes.consumer import SimConsumer
from .processes.consumer_table import SimTableConsumer
from .processes.handler import Group
from .processes.operator import SimOperator
from .processes.population import Population
from .processes.restored import Backup, RestoredBroker
from .processes.role import SimRole
from .trace import Violation

PLACE_MS = 5_000
SETTLE_MS = 15_000  # leases run out and the longest back-offs end
# A producer with the longest pauses and the most rows takes about a minute; then leases run out,
# back-offs end and a chain of groups follows.
WAITING_MS = 120_000

Place = tuple[str, str, int]  # group, topic, partition


def heal(people: Population) -> None:
    """Mend all that is broken, end who is in the wrong place, start what is dead."""
    for host in people.world.hosts:
        host.disk.faults.clear()
    for role in people.roles:
        role.calm()
    for user in people.users:
        rivals = [p for p in people.producers if p.user is user and user.name]
        for rival in rivals[1:]:
            _retire(people, rival)
    _put_in_place(people)
    for command in [people.spare_broker, *_commands(people)]:
        _retire(people, command)
    for role in people.roles:
        if role.wanted and not role.alive:
            people.world.restart(role)


def _put_in_place(people: Population) -> None:
    """Run members only where the broker knows their ledger, as an operator would see to it.

    Again and again: a join that was on its way when its sender ended may still be granted.
    """
    for role in _members(people):
        grant = people.world.oracle.grants.get(role.place)
        here = (role.host.name, role.directory)
        if role.stranger or (grant is not None and here != (grant.host, grant.path)):
            _retire(people, role)
        elif not role.wanted:
            role.wanted = True
            people.world.restart(role)
    people.world.after(PLACE_MS, lambda: _put_in_place(people))


def done(people: Population) -> bool:
    """Whether all is stored that users want, and all that is stored was handled."""
    if not all(user.content for user in people.users):
        return False
    if not all(producer.settled for producer in people.producers):
        return False
    settled = {role.place for role in _members(people) if role.settled}
    if not {member.place for member in people.members} <= settled:
        return False
    return all(_shared_evenly(people, group.name) for group in people.world.plan.groups)


def _shared_evenly(people: Population, group: str) -> bool:
    """Whether no member of a group has two partitions more than another one."""
    members = [role for role in people.members if role.group.name == group]
    if not all(role.wanted for role in members):
        return True  # its ledgers are elsewhere, with who copied them
    owned = dict.fromkeys((role.member for role in members), 0)
    for role in members:
        owned[role.member] += role.core is not None and role.core.phase == "running"
    return max(owned.values()) - min(owned.values()) <= 1


def late(people: Population, healed_ms: int) -> bool:
    """Whether the world has waited longer than it may since all was mended at `healed_ms`.

    The budget bounds *waiting*. How long handlers run is drawn by the plan, and no bound fits it: a
    place that small bounds make commit each message by itself may have minutes of it before it.
    """
    spent_ms = people.world.clock.now_ms() - healed_ms
    return spent_ms > WAITING_MS and spent_ms > WAITING_MS + _work_ms(people)


def _work_ms(people: Population) -> int:
    """Partitions work side by side, the messages of a chain one by one."""
    of_place: Counter[Place] = Counter()
    for role in _members(people):
        of_place[role.place] += role.healed_work_ms
    groups = people.world.plan.groups

    def until(group: Group) -> int:
        own = max(of_place[group.name, group.topic, p] for p in range(partitions[group.topic]))
        return own + max((until(one) for one in groups if one.output == group.topic), default=0)

    partitions = people.world.plan.partitions
    return max(until(group) for group in groups)


def what_is_left(people: Population) -> str:
    left = [f"user {user.name or 'web'}" for user in people.users if not user.content]
    left += [producer.name for producer in people.producers if not producer.settled]
    for role in _members(people):
        if not role.settled and role.wanted:
            phase = role.core.phase if role.core else "dead"
            model = people.world.ledgers.get((role.host.name, role.directory))
            left.append(f"{role.name} {phase} at {model.next_offset if model else 0}")
    left += [f"{s.name} is dead: {s.error}" for s in people.roles if s.wanted and not s.alive]
    return "; ".join(left)


def validate(people: Population) -> None:
    """Cut the power for good; what is left on the disks must be what the oracles have."""
    for (producer, topic, partition), bodies in people.world.oracle.outputs.items():
        stored = people.world.oracle.next_sequence.get((producer, topic, partition), 0)
        if stored != len(bodies):
            raise Violation("outputs", f"{producer}: {stored} stored of {len(bodies)}")
    disks = {}
    for host in people.world.hosts:
        if host.disk.sync_retries:
            raise Violation("sync retried", f"{host.disk.sync_retries} times on {host.name}")
        disks[host.name] = host.disk.power_cut(LoseEverything())
    read_back(disks[people.broker.host.name], DATA, people.world.oracle)
    for (group, _, _), grant in people.world.oracle.grants.items():
        if group not in people.world.plan.tables:
            read_back(disks[grant.host], grant.path, people.world.ledgers[grant.host, grant.path])
    for database in people.databases.values():
        database.read_back()
    for number, backup in enumerate(people.backups):
        restore(people, backup, number, disks)
    if "copied ledger" not in people.world.plan.faults:
        # A copy that was granted may cut its commits elsewhere than its original did, whose outputs
        # the log holds: the same messages in other batches, which the proof takes for other outputs.
        prove_files(people, disks)


def restore(people: Population, backup: Backup, number: int, disks: dict[str, SimDisk]) -> None:
    """Start the broker from a backup; each ledger and producer that relied on more must be refused."""
    broker = RestoredBroker(people.world, backup, number)
    try:
        ledgers = [
            (role, disks[grant.host])
            for place, grant in people.world.oracle.grants.items()
            for role in _members(people)
            if _is_granted(role, place, grant) and not isinstance(role, SimTableConsumer)
        ]
        for role, _ in ledgers:
            broker.grow(role.group.topic, role.partition, role.model.next_offset)
        for role, disk in ledgers:
            broker.meet_ledger(role, disk)
        for producer in people.producers:
            broker.meet_producer(producer)
        broker.meet_original(disks[people.broker.host.name].copy())
    finally:
        broker.close()


def prove_files(people: Population, disks: dict[str, SimDisk]) -> None:
    """Prove log and ledgers as `oncemq verify` does: the oracles knew of more than files."""
    looks: dict[str, Look] = {}
    for place, grant in people.world.oracle.grants.items():
        role = next(its for its in _members(people) if _is_granted(its, place, grant))
        where = f"{grant.host}:{grant.path} ({'/'.join(map(str, place))})"
        if isinstance(role, SimTableConsumer):
            looks[where] = partial(TableLog, where, role.database.look, place)
        else:
            looks[where] = partial(Log.look, disks[grant.host], grant.path)
    report = prove(partial(broker_log, disks[people.broker.host.name], DATA), lambda: looks)
    if not report.ok:
        raise Violation("proof", str(report.found.kept[0]))
    if report.outputs_pending:
        raise Violation("proof", f"{report.outputs_pending} outputs were never sent")


def _is_granted(role: SimConsumer, place: Place, grant: GroupGranted) -> bool:
    where = (role.host.name, role.directory)
    return role.place == place and where == (grant.host, grant.path)


def _members(people: Population) -> list[SimConsumer]:
    return [role for role in people.roles if isinstance(role, SimConsumer)]


def _commands(people: Population) -> list[SimOperator]:
    return [role for role in people.roles if isinstance(role, SimOperator)]


def _retire(people: Population, role: SimRole) -> None:
    role.wanted = False
    if role.alive:
        people.world.trace.add(role.name, "retired")
        role.gone()
