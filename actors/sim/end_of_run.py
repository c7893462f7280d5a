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
from .processes.operator import OperatorShell
from .processes.population import Population
from .processes.shell import Shell
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
    for shell in people.shells:
        shell.calm()
    for user in people.users:
        rivals = [p for p in people.producers if p.user is user and user.name]
        for rival in rivals[1:]:
            _retire(people, rival)
    _put_in_place(people)
    for command in [people.spare_broker, *_commands(people)]:
        _retire(people, command)
    for shell in people.shells:
        if shell.wanted and not shell.alive:
            people.world.restart(shell)


def _put_in_place(people: Population) -> None:
    """Run members only where the broker knows their ledger, as an operator would see to it.

    Again and again: a join that was on its way when its sender ended may still be granted.
    """
    for shell in _members(people):
        grant = people.world.oracle.grants.get(shell.place)
        here = (shell.host.name, shell.directory)
        if shell.stranger or (grant is not None and here != (grant.host, grant.path)):
            _retire(people, shell)
        elif not shell.wanted:
            shell.wanted = True
            people.world.restart(shell)
    people.world.after(PLACE_MS, lambda: _put_in_place(people))


def done(people: Population) -> bool:
    """Whether all is stored that users want, and all that is stored was handled."""
    if not all(user.content for user in people.users):
        return False
    if not all(producer.settled for producer in people.producers):
        return False
    settled = {shell.place for shell in _members(people) if shell.settled}
    if not {member.place for member in people.members} <= settled:
        return False
    return all(_shared_evenly(people, group.name) for group in people.world.plan.groups)


def _shared_evenly(people: Population, group: str) -> bool:
    """Whether no member of a group has two partitions more than another one."""
    members = [shell for shell in people.members if shell.group.name == group]
    if not all(shell.wanted for shell in members):
        return True  # its ledgers are elsewhere, with who copied them
    owned = dict.fromkeys((shell.member for shell in members), 0)
    for shell in members:
        owned[shell.member] += shell.core is not None and shell.core.phase == "running"
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
    for shell in _members(people):
        of_place[shell.place] += shell.healed_work_ms
    groups = people.world.plan.groups

    def until(group: Group) -> int:
        own = max(of_place[group.name, group.topic, p] for p in range(partitions[group.topic]))
        return own + max((until(one) for one in groups if one.output == group.topic), default=0)

    partitions = people.world.plan.partitions
    return max(until(group) for group in groups)


def what_is_left(people: Population) -> str:
    left = [f"user {user.name or 'web'}" for user in people.users if not user.content]
    left += [producer.name for producer in people.producers if not producer.settled]
    for shell in _members(people):
        if not shell.settled and shell.wanted:
            phase = shell.core.phase if shell.core else "dead"
            model = people.world.ledgers.get((shell.host.name, shell.directory))
            left.append(f"{shell.name} {phase} at {model.next_offset if model else 0}")
    left += [f"{s.name} is dead: {s.error}" for s in people.shells if s.wanted and not s.alive]
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
    prove_files(people, disks)


def prove_files(people: Population, disks: dict[str, SimDisk]) -> None:
    """Prove log and ledgers as `oncemq verify` does: the oracles knew of more than files."""
    looks: dict[str, Look] = {}
    for place, grant in people.world.oracle.grants.items():
        shell = next(its for its in _members(people) if _is_granted(its, place, grant))
        where = f"{grant.host}:{grant.path} ({'/'.join(map(str, place))})"
        if isinstance(shell, SimTableConsumer):
            looks[where] = partial(TableLog, where, shell.database.look, place)
        else:
            looks[where] = partial(Log.look, disks[grant.host], grant.path)
    report = prove(partial(broker_log, disks[people.broker.host.name], DATA), lambda: looks)
    if not report.ok:
        raise Violation("proof", str(report.found.kept[0]))
    if report.outputs_pending:
        raise Violation("proof", f"{report.outputs_pending} outputs were never sent")


def _is_granted(shell: SimConsumer, place: Place, grant: GroupGranted) -> bool:
    where = (shell.host.name, shell.directory)
    return shell.place == place and where == (grant.host, grant.path)


def _members(people: Population) -> list[SimConsumer]:
    return [shell for shell in people.shells if isinstance(shell, SimConsumer)]


def _commands(people: Population) -> list[OperatorShell]:
    return [shell for shell in people.shells if isinstance(shell, OperatorShell)]


def _retire(people: Population, shell: Shell) -> None:
    shell.wanted = False
    if shell.alive:
        people.world.trace.add(shell.name, "retired")
        shell.gone()
