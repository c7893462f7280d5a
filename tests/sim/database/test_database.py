"""The simulated database: who sees what, who waits for whom, and what each kind of end takes away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from oncemq.cli.sim_relay import make_relay
from oncemq.records import GroupGranted
from oncemq.sim.database.client import IDLE_MS, Client
from oncemq.sim.database.database import (
    LINGER_MS,
    Database,
    Full,
    Locked,
    Lost,
    Waits,
)
from oncemq.sim.database.session import open_tables
from oncemq.sim.disk.cuts import LoseEverything
from oncemq.sim.disk.disk import SimulatedCrash
from oncemq.sim.oracles.log import Place
from oncemq.sim.oracles.table import account_of
from oncemq.sim.plan import FILE, GUARDED, SERVER, Plan
from oncemq.sim.processes.consumer_table import SimTableConsumer
from oncemq.sim.processes.handler import ADD_UP, PAY
from oncemq.sim.trace import Violation
from oncemq.sim.world import World

ADD = "INSERT INTO notes (name, number) VALUES (?, ?)"
RAISE = "UPDATE notes SET number = number + 1 WHERE name = ?"
ALL = "SELECT name, number FROM notes ORDER BY name"


class House:
    """A world that stands still, its one database, and connections of its members."""

    def __init__(self, kind: str) -> None:
        plan = replace(Plan.of(1), faults={}, standbys=2, partitions={"orders": 1, "invoices": 1})
        plan = replace(plan, tables={plan.groups[0].name: kind})
        self.world = World(plan, make_relay)
        self.database: Database = next(iter(self.world.people.databases.values()))
        self.shells = [
            one for one in self.world.people.members if isinstance(one, SimTableConsumer)
        ]
        self.database._engine.execute("CREATE TABLE notes (name TEXT PRIMARY KEY, number INTEGER)")

    def client(self, number: int = 0) -> Client:
        shell = self.shells[number]
        client = Client(self.database, shell, shell.member, shell.host.disk.process(shell.name))
        client.connect()
        return client

    def notes(self) -> list[Any]:
        return list(self.database._committed_rows(ALL))

    def wait(self, milliseconds: int) -> None:
        until = self.world.clock.now_ms() + milliseconds
        while self.world.clock.now_ms() < until:
            self.world._step()


@pytest.fixture(params=[FILE, SERVER])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """One with a database of each kind."""
    house = House(request.param)
    yield house
    house.world.close()


@pytest.fixture
def server() -> Iterator[House]:
    """One with a server."""
    house = House(SERVER)
    yield house
    house.world.close()


@pytest.fixture
def file() -> Iterator[House]:
    """One with a file."""
    house = House(FILE)
    yield house
    house.world.close()


def begun(house: House, number: int = 0, *, waits: bool = False) -> Client:
    """A connection with an open transaction."""
    client = house.client(number)
    client.begin(waits=waits)
    return client


def put(house: House, *names: str) -> None:
    client = begun(house)
    for name in names:
        client.execute(ADD, (name, 0))
    client.commit()
    client.disconnect()


def test_others_see_what_is_committed_and_nothing_else(house: House) -> None:
    """Before its COMMIT only the session itself sees what it wrote."""
    client, other = begun(house), house.client(1)
    client.execute(ADD, ("a", 1))
    assert client.execute(ALL) == [("a", 1)]
    assert other.execute(ALL) == []
    assert client.execute(ALL) == [("a", 1)]
    client.commit()
    assert other.execute(ALL) == [("a", 1)]
    assert not client.in_transaction


def test_what_is_rolled_back_was_never_there(house: House) -> None:
    """Also where another session had its turn in between."""
    client = begun(house)
    client.execute(ADD, ("a", 1))
    house.client(1).execute(ALL)
    client.roll_back()
    assert house.notes() == client.execute(ALL) == []


def test_a_savepoint_takes_back_one_message(house: House) -> None:
    """What stands before it stays, however often another session has its turn."""
    client, other = begun(house), house.client(1)
    for name, keep in (("a", True), ("b", False), ("c", True)):
        client.execute("SAVEPOINT oncemq_message")
        client.execute(ADD, (name, 1))
        other.execute(ALL)
        if not keep:
            client.execute("ROLLBACK TO SAVEPOINT oncemq_message")
        client.execute("RELEASE SAVEPOINT oncemq_message")
    other.execute(ALL)
    client.commit()
    assert house.notes() == [("a", 1), ("c", 1)]


def test_transactions_side_by_side(server: House) -> None:
    """A server has many; each goes on where it was."""
    put(server, "a", "b")
    one, two = begun(server, 0), begun(server, 1)
    for _ in range(3):
        assert one.execute(RAISE, ("a",)).rowcount == 1
        assert two.execute(RAISE, ("b",)).rowcount == 1
    assert one.execute(ALL) == [("a", 3), ("b", 0)]
    two.commit()
    one.commit()
    assert server.notes() == [("a", 3), ("b", 3)]


def test_a_row_that_is_locked(server: House) -> None:
    """A handler waits for it, a statement of ours does not; its owner's end sets it free."""
    put(server, "a", "b")
    owner = begun(server, 0)
    owner.execute(RAISE, ("a",))
    handler, ours = begun(server, 1, waits=True), begun(server, 2)
    handler.execute(RAISE, ("b",))
    with pytest.raises(Waits):
        handler.execute(RAISE, ("a",))
    with pytest.raises(Locked):
        ours.execute(RAISE, ("a",))
    owner.disconnect()
    handler.execute(RAISE, ("a",))
    handler.commit()
    assert server.notes() == [("a", 1), ("b", 1)]


def test_a_file_has_one_writer(file: House) -> None:
    """Others read meanwhile."""
    put(file, "a")
    owner = begun(file, 0)
    other = file.client(1)
    with pytest.raises(Waits):
        other.begin(waits=True)
    with pytest.raises(Locked):
        other.begin(waits=False)
    assert other.execute(ALL) == [("a", 0)]
    owner.process_ended()
    other.begin(waits=False)
    other.commit()


def test_a_server_that_stops(server: House) -> None:
    """Sessions are over, what was open is rolled back, what was committed stays."""
    put(server, "a")
    client = begun(server)
    client.execute(RAISE, ("a",))
    server.database.stop()
    with pytest.raises(Lost, match="lost"):
        client.execute(ALL)
    assert (client.broken, client.in_transaction) == (True, False)
    with pytest.raises(Lost, match="refused"):
        client.connect()
    server.database.up = True
    client.connect()
    assert client.execute(ALL) == [("a", 0)]
    assert not client.broken


@pytest.mark.parametrize(("where", "there"), [("before", []), ("after", [("a", 1)])])
def test_a_commit_of_unknown_outcome(house: House, where: str, there: list[Any]) -> None:
    """Its client is told the same, whether it was carried out or not."""
    client = begun(house)
    client.execute(ADD, ("a", 1))
    house.database.next_commit = where
    with pytest.raises(Lost, match="during COMMIT"):
        client.commit()
    assert house.notes() == there
    assert client.broken


@pytest.mark.parametrize("read", [True, False])
def test_a_commit_in_a_file_is_lost_with_the_power_unless_it_was_synced(
    file: House, read: bool
) -> None:
    """Its process died before the sync; a reader sees it, and makes it durable if it asks."""
    put(file, "a")
    client = begun(file)
    client.execute(RAISE, ("a",))
    file.database.next_commit = "unsynced"
    with pytest.raises(SimulatedCrash):
        client.commit()
    client.process_ended()
    other = file.client(1)
    assert other.execute(ALL) == [("a", 1)]
    if read:
        other.sync_read()
    file.world.power_cut(file.shells[0].host, LoseEverything())
    assert file.notes() == [("a", int(read))]


def test_a_later_commit_syncs_the_one_before_it(file: House) -> None:
    """There is one write-ahead log."""
    put(file, "a")
    client = begun(file)
    client.execute(RAISE, ("a",))
    file.database.next_commit = "unsynced"
    with pytest.raises(SimulatedCrash):
        client.commit()
    client.process_ended()
    put(file, "b")
    file.world.power_cut(file.shells[0].host, LoseEverything())
    assert file.notes() == [("a", 1), ("b", 0)]


def test_a_process_that_dies_at_any_call_leaves_nothing_open(house: House) -> None:
    """Killed inside of a statement: it raises, and so does all that the dead process tries."""
    put(house, "a")
    client = begun(house)
    client.execute(RAISE, ("a",))
    process = client._process

    def die(_kind: str, _path: str) -> None:
        process.dead = True

    process.hook = die
    for call in (lambda: client.execute(RAISE, ("a",)), client.commit, client.roll_back):
        with pytest.raises(SimulatedCrash):
            call()
    client.process_ended()
    assert house.notes() == [("a", 0)]
    begun(house, 1).execute(RAISE, ("a",))


def test_what_was_handed_over_may_not_idle(server: House) -> None:
    """The server ends the session; while handlers have the transaction it does not."""
    held, idle = begun(server, 0, waits=True), begun(server, 1, waits=True)
    idle.hand_over()
    server.wait(IDLE_MS + 1)
    held.execute(ALL)
    with pytest.raises(Lost):
        idle.commit()


def test_a_machine_that_vanishes_keeps_its_locks_for_a_while(server: House) -> None:
    """The server learns late that nobody is there, unless it is told to end the session."""
    put(server, "a")
    gone, terminated = begun(server, 0), begun(server, 1)
    gone.execute(RAISE, ("a",))
    number = terminated.facts()["session"]
    server.world.power_cut(server.shells[0].host, LoseEverything())
    gone.process_ended()
    terminated.process_ended()
    other = begun(server, 2)
    with pytest.raises(Locked):
        other.execute(RAISE, ("a",))
    assert other.terminate(number)
    assert len(server.database.sessions) == 2
    server.wait(LINGER_MS + 1)
    assert other.execute(RAISE, ("a",)).rowcount == 1


def test_who_may_not_end_sessions_does_not() -> None:
    """A guarded server says so, unless the session is over anyway."""
    house = House(GUARDED)
    one, two = begun(house, 0), begun(house, 1)
    number = one.facts()["session"]
    assert not two.terminate(number)
    assert one.execute(ALL) == []
    one.disconnect()
    assert two.terminate(number)
    house.world.close()


def test_the_lock_of_an_owner_lives_as_long_as_its_session(house: House) -> None:
    """Who gets it has proved that the owner is dead."""
    key = (b"ledger", 1)
    owner, other = house.client(0), house.client(1)
    assert owner.take_own(key)
    assert owner.take_own(key)
    assert not other.take_dead(key)
    owner.process_ended()
    assert other.take_dead(key)
    assert not house.client(2).take_own(key)
    other.let_go()
    assert house.client(2).take_own(key)


def test_a_full_database_reads_on(house: House) -> None:
    """It writes nothing, and no transaction is lost."""
    client = begun(house)
    client.execute(ADD, ("a", 1))
    house.database.full = True
    with pytest.raises(Full):
        client.execute(ADD, ("b", 1))
    assert client.execute(ALL) == [("a", 1)]
    house.database.full = False
    client.commit()
    assert house.notes() == [("a", 1)]


def made(house: House) -> Place:
    """Make the ledger of the first member; return its place."""
    place = house.shells[0].place
    client, draw = house.client(1), house.world.draw
    door = open_tables(client, "ledger", place, host="h", lost="", draw=draw)
    facts = door.peek()
    grant = (1, b"incarnation".ljust(16), facts.ledger_id, 0, "h", "ledger", "label", 0)
    house.world.oracle.grants[place] = GroupGranted(*place, *grant)
    door.open(1)
    return place


ACCOUNT = account_of(("bill", "orders", 0))
WRONG = [
    (PAY, (ACCOUNT, b"x", 1), "wrong rows"),
    (PAY, ("nobody", b"x", 1), "wrong rows"),
    (ADD_UP, (1, ACCOUNT), "wrong sum"),
    ("UPDATE oncemq_ledger SET epoch = 0", (), "zombie row"),
    ("UPDATE oncemq_ledger SET epoch = 2", (), "grant not durable"),
    ("UPDATE oncemq_ledger SET position = 10", (), "row apart"),
    ("UPDATE oncemq_ledger SET group_name = 'x'", (), "foreign ledger"),
    (
        "INSERT INTO oncemq_record SELECT ledger_id, 0, 9, 9, x'', x'', 0 FROM oncemq_ledger",
        (),
        "records gone",
    ),
]


@pytest.mark.parametrize(("text", "values", "rule"), WRONG)
def test_the_oracle_finds_what_no_commit_record_speaks_of(
    server: House, text: str, values: tuple[Any, ...], rule: str
) -> None:
    """Rows, sums, ledgers and records of nobody."""
    made(server)
    with pytest.raises(Violation) as found:
        server.client().execute(text, values)
    assert found.value.rule == rule
