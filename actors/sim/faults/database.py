"""Databases that stop, are full and lose connections; consumers that stand still in a transaction."""

from __future__ import annotations

from ..database.database import Database
from ..disk.cuts import Seeded
from ..plan import FILE, SERVER
from ..processes.consumer_table import SimTableConsumer
from .base import Fault


class _OfTables(Fault):
    def arm(self) -> None:
        if self.world.plan.tables:
            super().arm()

    def _database(self) -> Database:
        return self.people.databases[self.rng.choice(sorted(self.world.plan.tables))]


class DatabaseStop(_OfTables):
    """A database server is killed, and started again after a while."""

    name = "database stop"

    def strike(self) -> bool:
        """End all sessions; what is committed stays."""
        database = self._database()
        if not database.up or database.kind != SERVER:
            return False
        database.stop()
        self.world.after(self.rng.choice((100, 1_000, 8_000)), lambda: self._start(database))
        return True

    def heal(self) -> None:
        for database in self.people.databases.values():
            self._start(database)

    def _start(self, database: Database) -> None:
        database.up = True


class ConnectionLost(_OfTables):
    """A connection breaks: between two statements, or while a COMMIT or its answer is under way."""

    name = "connection lost"

    def strike(self) -> bool:
        """Break a connection now, or leave the outcome of the next COMMIT unknown."""
        database = self._database()
        where = self.rng.choice(("now", "before", "before", "after", "after"))
        if where != "now":
            database.next_commit = database.next_commit or where
            return True
        if database.kind != SERVER or not database.sessions:
            return False
        database.end(self.rng.choice(database.sessions))
        return True

    def heal(self) -> None:
        for database in self.people.databases.values():
            database.next_commit = ""


class RivalSession(_OfTables):
    """A session of others makes a server end a transaction: in a handler's statement, or at COMMIT."""

    name = "rival session"

    def strike(self) -> bool:
        database = self._database()
        if database.kind != SERVER:
            return False
        database.next_conflict = self.rng.choice(("statement", "statement", "commit"))
        return True

    def heal(self) -> None:
        for database in self.people.databases.values():
            database.next_conflict = ""


class DatabaseFull(_OfTables):
    """A database has no room for a while."""

    name = "database full"

    def strike(self) -> bool:
        database = self._database()
        database.full = True
        self.world.after(self.rng.choice((500, 3_000, 10_000)), lambda: self._free(database))
        return True

    def heal(self) -> None:
        for database in self.people.databases.values():
            self._free(database)

    def _free(self, database: Database) -> None:
        database.full = False


class UnsyncedCommit(_OfTables):
    """A process dies between a COMMIT and its sync, and the power goes after others have read it."""

    name = "unsynced commit"

    def strike(self) -> bool:
        database = self._database()
        if database.kind == FILE:
            database.next_commit = "unsynced"
            database.unsynced_read = lambda: self._read(database)
        return False

    def _read(self, database: Database) -> None:
        """A process has read a commit that is not synced."""
        self.fired()
        database.unsynced_read = None
        policy = Seeded(self.rng.getrandbits(32))
        self.world.after(
            self.rng.randint(1, 30), lambda: self.world.power_cut(database.host, policy)
        )

    def heal(self) -> None:
        for database in self.people.databases.values():
            database.unsynced_read = None


class StuckAtWork(_OfTables):
    """A consumer stands still, or dies, between two steps of a handler run or of its commit."""

    name = "stuck at work"

    def strike(self) -> bool:
        """Choose an owner; it gets stuck at a step of its next run."""
        owners = [
            one for one in self.people.roles if isinstance(one, SimTableConsumer) and one.owns
        ]
        if owners:
            role = self.rng.choice(owners)
            role.interlude = lambda: self._stick(role)
        return False

    def _stick(self, role: SimTableConsumer) -> None:
        """Pauses are often longer than a lease, and the owner is deaf when it wakes."""
        world = self.world
        self.fired()
        if self.rng.random() < 0.3:
            world.kill(role)
            return
        pause_ms = self.rng.choice((200, 3_000, 13_000, 16_000, 20_000))
        role.frozen_until_ms = world.clock.now_ms() + pause_ms
        world.trace.add(role.name, "frozen", {"ms": pause_ms})
        if self.rng.random() < 0.5 and world.addresses:
            world.network.partition(role.endpoint_name(), world.addresses[-1], one_way=False)
            world.after(pause_ms + 1_000, world.network.heal)

    def heal(self) -> None:
        for role in self.people.roles:
            if isinstance(role, SimTableConsumer):
                role.interlude = None
        self.world.network.heal()
