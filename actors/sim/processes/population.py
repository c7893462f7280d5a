"""Who lives in a world, made from its plan: brokers, users with their producers, groups.

The members of a group keep their ledgers in files or in tables.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace

from ...codec import wire
from ...ports import Frames
from ...protocol import VERSION_MAX, VERSION_MIN, CreateTopic, Hello
from ..database.database import Database
from ..disk.disk import SimFile, SimProcess, SimulatedCrash
from ..environment import Environment, Host
from .broker import SimBroker
from .consumer import SimConsumer
from .consumer_table import SimTableConsumer
from .dated_user import FIRST_DEDUP, PARTITIONS, TOPIC, DatedUser
from .handler import Group
from .outbox import Outbox, OutboxUser
from .producer import SimProducer
from .relay import MakeRelay, SimRelay
from .restored import Backup
from .role import SimRole
from .users import FileUser, RivalUser, User, WebUser


class Population:
    """All roles of a plan, not started yet, and those that faults add."""

    def __init__(self, world: Environment, make_relay: MakeRelay) -> None:
        self.world = world
        plan, oracle = world.plan, world.oracle
        broker_host, consumer_host = world.hosts[0], world.hosts[-2]
        self.broker = SimBroker(world, "broker", broker_host)
        self.spare_broker = SimBroker(world, "broker-spare", broker_host)
        self.spare_broker.wanted = False
        self.users: list[User] = []
        self.producers: list[SimProducer] = []
        topic = plan.groups[0].topic
        kinds: list[tuple[User, int]] = []
        if plan.files:
            kinds.append((FileUser("file", topic, plan.quota, oracle), 1))
        if plan.rivals:
            kinds.append((RivalUser("rival", topic, plan.quota, oracle), plan.rivals))
        if plan.webs:
            kinds.append((WebUser("", topic, plan.quota, oracle), plan.webs))
        if plan.named_web:
            kinds.append((WebUser("named", topic, plan.quota, oracle), 2))
        if plan.with_horizons:
            kinds.append((DatedUser(plan.quota, oracle), 2))
        for user, count in kinds:
            self.users.append(user)
            for number in range(count):
                name = f"{type(user).__name__}-{user.name or 'web'}-{number}".lower()
                self.producers.append(SimProducer(world, name, consumer_host, user))
        self.outbox = Outbox(oracle)
        self.relays: list[SimRelay] = []
        self.program: OutboxUser | None = None  # that fills the outbox
        if plan.relays:
            self.program = OutboxUser(world, self.outbox, topic, plan.quota)
            self.users.append(self.program)
            self.relays = [
                SimRelay(world, f"relay-{number}", consumer_host, self.outbox, make_relay)
                for number in range(plan.relays)
            ]
        # Databases that hold ledgers, by group, and copies of them.
        self.databases = {
            group: Database(world, f"database of {group}", kind, consumer_host)
            for group, kind in plan.tables.items()
        }
        self.members = list(self._members())
        # All of them.
        self.roles: list[SimRole] = [
            self.broker,
            self.spare_broker,
            *self.producers,
            *self.relays,
            *self.members,
        ]
        # Copies of the broker's data, to be started at the end of the run.
        self.backups: list[Backup] = []
        # How many were started with another directory than that of their partition.
        self.strangers = 0

    def _members(self) -> Iterator[SimConsumer]:
        plan, host = self.world.plan, self.world.hosts[-2]
        for group in plan.groups:
            for partition in range(plan.partitions[group.topic]):
                for letter in "abc"[: 1 + plan.standbys]:
                    name = f"{group.name}-{partition}-{letter}"
                    role = self._member(name, host, group, partition)
                    # For the broker the roles of one letter are one process. Here each of them
                    # dies and freezes by itself, which is worse than what a process does.
                    role.member = f"{group.name}-{letter}".encode().ljust(16, b".")
                    yield role

    def _member(self, name: str, host: Host, group: Group, partition: int) -> SimConsumer:
        world, path = self.world, f"/state/{group.name}/{group.topic}/{partition}"
        database = self.databases.get(group.name)
        if database is None:
            return SimConsumer(world, name, host, group, partition, path)
        # What is kept in a database has no state by key: such a consumer is refused.
        plain = replace(group, concurrency=0)
        role = SimTableConsumer(world, name, host, plain, partition, path, database)
        database.add(role.place, role.model)
        return role

    def clients(self) -> list[SimRole]:
        brokers = (self.broker, self.spare_broker)
        return [s for s in self.roles if s.alive and s.transport is not None and s not in brokers]

    def topic_requests(self) -> list[Frames]:
        world = self.world
        hello = Hello(1, VERSION_MIN, VERSION_MAX, "admin", world.draw(), b"", 0)
        requests: list[Frames] = [wire.encode(hello, None)]
        for number, (topic, partitions) in enumerate(sorted(world.plan.partitions.items()), 2):
            retain = world.plan.retain.get(topic, "")
            requests.append(wire.encode(CreateTopic(number, topic, partitions, "", retain), None))
        if world.plan.with_horizons:
            create = CreateTopic(2 + len(world.plan.partitions), TOPIC, PARTITIONS, FIRST_DEDUP)
            requests.append(wire.encode(create, None))
        return requests

    def start_elsewhere(self, member: SimConsumer, *, copy: bool) -> bool:
        """Start a consumer with another directory: an empty one, or a copy of the member's."""
        if self.world.oracle.grants.get(member.place) is None:
            return False
        self.strangers += 1
        role = self._elsewhere(member, copy=copy)
        if role is None:
            return False
        role.stranger = not copy
        role.wanted = copy
        self.roles.append(role)
        role.start()
        return True

    def _elsewhere(self, member: SimConsumer, *, copy: bool) -> SimConsumer | None:
        """Return a consumer with another directory; None where that cannot be."""
        world, number = self.world, self.strangers
        host, directory = world.hosts[-1], f"/elsewhere/{number}"
        name = f"{'copy' if copy else 'stranger'}-{number}"
        group, partition = member.group, member.partition
        if isinstance(member, SimTableConsumer):
            kind = world.plan.tables[group.name]
            database = self.databases[name] = Database(world, f"database of {name}", kind, host)
            stranger = SimTableConsumer(world, name, host, group, partition, directory, database)
            if copy:
                key = (host.name, stranger.directory)
                world.ledgers[key] = database.restore(member.database, member.place)
            else:
                database.add(stranger.place, stranger.model)
            return stranger
        if copy:
            try:
                copy_directory(member.host, member.directory, host, directory)
            except (OSError, SimulatedCrash):
                return None
            model = member.model.copy(f"{host.name}:{directory}")
            world.ledgers[host.name, directory] = model
        return SimConsumer(world, name, host, group, partition, directory)


def copy_directory(source: Host, path: str, target: Host, new_path: str) -> None:
    """Copy files as `cp -r` does, and sync them. Raises OSError."""
    reader, writer = source.disk.process("cp"), target.disk.process("cp")
    try:
        _make_directories(writer, new_path)
        _copy(reader, path, writer, new_path)
    finally:
        reader.kill()
        writer.kill()


def _make_directories(disk: SimProcess, path: str) -> None:
    parent = posixpath.dirname(path)
    if parent != path and not disk.exists(parent):
        _make_directories(disk, parent)
    disk.make_directory(path)
    disk.sync_directory(parent)


def _copy(reader: SimProcess, path: str, writer: SimProcess, new_path: str) -> None:
    for name in reader.list(path):
        old, new = posixpath.join(path, name), posixpath.join(new_path, name)
        if reader.machine.find(old).directory:
            writer.make_directory(new)
            _copy(reader, old, writer, new)
        else:
            _copy_file(reader.open(old), writer.create(new))
    writer.sync_directory(new_path)


def _copy_file(old: SimFile, new: SimFile) -> None:
    new.write(old.read(0, old.length()), 0)
    new.sync()
