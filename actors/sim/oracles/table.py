"""What is committed in a simulated database: ledgers' rows and users' rows, compared at each commit.

The records of a ledger go to the same model as those of a log of files. Here the tables around them
are looked at: the row of a ledger says what its records say, epochs never go back, and handlers'
rows are exactly those of the messages that the model has handled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..processes.handler import amount_of
from ..trace import Violation
from .ledger import LedgerOracle
from .log import BrokerOracle, Place

LEDGERS = (
    "SELECT group_name, topic, partition_no, ledger_id, epoch, commit_no, position,"
    " snapshot_position, topic_id, inputs, seen FROM oncemq_ledger"
)
RECORDS = (
    "SELECT position, epoch, kind, meta, body FROM oncemq_record"
    " WHERE ledger_id = ? AND position >= ? ORDER BY position"
)
COUNT = "SELECT count(*) FROM oncemq_record WHERE ledger_id = ?"
PAID = "SELECT rowid, place, identity, amount FROM paid WHERE rowid > ? ORDER BY rowid"
BALANCE = "SELECT place, cents, payments FROM balance"
ALL_PAID = "SELECT place, identity FROM paid ORDER BY rowid"
OVERHEAD = 32  # docs/STORAGE.md: what a record adds to the position besides its own bytes

Ask = Callable[..., list[tuple[Any, ...]]]


@dataclass(slots=True)
class Account:
    """One ledger and what its handlers have written, as far as it was looked at."""

    model: LedgerOracle
    row: tuple[Any, ...] = ()
    end: int = 0
    kept: list[int] = field(default_factory=list)  # positions of records that no snapshot replaced
    paid: int = 0
    cents: int = 0


class TableOracle:
    """All ledgers of one database."""

    def __init__(self, log: BrokerOracle, name: str, ask: Ask) -> None:
        """`ask` returns the rows of a query about what is committed."""
        self._log = log
        self._name = name
        self._ask = ask
        self._accounts: dict[Place, Account] = {}
        self._last_rowid = 0

    def knows(self, place: Place) -> bool:
        return place in self._accounts

    def add(self, place: Place, model: LedgerOracle) -> None:
        self._accounts[place] = Account(model)

    def restore(self, source: TableOracle, place: Place) -> LedgerOracle:
        """Know what another one knows: its database was copied. Returns the model of a place."""
        self._last_rowid = source._last_rowid
        for of_place, account in source._accounts.items():
            model = account.model.copy(f"{account.model.name} in {self._name}")
            model.fence(account.model.epoch)
            kept = list(account.kept)
            self._accounts[of_place] = replace(account, model=model, kept=kept)
        return self._accounts[place].model

    def end_of(self, place: Place) -> int:
        return self._accounts[place].end

    def look(self) -> None:
        """Compare what was committed since the last look. Raises Violation."""
        if not self._ask("SELECT 1 FROM sqlite_master WHERE name = 'oncemq_ledger'"):
            return
        for group, topic, partition, *row in self._ask(LEDGERS):
            account = self._accounts.get((group, topic, partition))
            if account is None:
                raise Violation("foreign ledger", f"{self._name}: {group} {topic}/{partition}")
            if account.row != tuple(row):
                self._ledger(account, (group, topic, partition), tuple(row))
            (count,) = self._ask(COUNT, (row[0],))[0]
            if count != len(account.kept):
                raise Violation("records gone", f"{account.model.name}: {count} are there")
        self._payments()

    def _ledger(self, account: Account, place: Place, row: tuple[Any, ...]) -> None:
        model, last = account.model, account.row
        ledger_id, epoch, commit_no, position, snapshot_position, topic_id, inputs, seen = row
        account.row = row
        if last and (ledger_id != last[0] or epoch < last[1]):
            raise Violation("zombie row", f"{model.name}: epoch {epoch} after {last[1]}")
        grant = self._log.grants.get(place)
        if epoch and (grant is None or grant.epoch < epoch):
            raise Violation("grant not durable", f"{model.name} is claimed for epoch {epoch}")
        model.fence(epoch)
        for at, of_epoch, kind, meta, body in self._ask(RECORDS, (ledger_id, account.end)):
            if at != account.end or of_epoch != epoch:
                raise Violation("wrong record", f"{model.name}: at {at}, epoch {of_epoch}")
            model.durable(at, (kind, bytes(meta), bytes(body)))
            account.kept.append(at)
            account.end += OVERHEAD + len(meta) + len(body)
        if (position, commit_no) != (account.end, model.commit_no):
            raise Violation("row apart", f"{model.name}: row {position}, records {account.end}")
        if json.loads(inputs).get(topic_id.hex(), 0) != model.next_offset:
            raise Violation("row apart", f"{model.name}: {inputs}, not {model.next_offset}")
        mark, at = json.loads(seen or '["", 0]')
        if (bytes.fromhex(mark), at) != model.seen:
            raise Violation("row apart", f"{model.name}: {seen}, not {model.seen}")
        account.kept = [at for at in account.kept if at >= snapshot_position]

    def _payments(self) -> None:
        """Each message that is handled has its row, once, since the very commit that passed it."""
        found: dict[str, list[tuple[bytes, int]]] = {}
        for rowid, name, identity, amount in self._ask(PAID, (self._last_rowid,)):
            self._last_rowid = rowid
            found.setdefault(name, []).append((identity, amount))
        sums = {name: (cents, count) for name, cents, count in self._ask(BALANCE)}
        for place, account in self._accounts.items():
            name = account_of(place)
            fresh = account.model.healthy[account.paid :]
            expected = [(identity, amount_of(identity)) for identity in fresh]
            if found.pop(name, []) != expected:
                raise Violation("wrong rows", f"{self._name}: {name}, not {expected}")
            account.paid += len(expected)
            account.cents += sum(amount for _, amount in expected)
            if sums[name] != (account.cents, account.paid):
                raise Violation("wrong sum", f"{self._name}: {name} {sums[name]}")
        if found:
            raise Violation("wrong rows", f"{self._name}: rows of {sorted(found)}")

    def read_back(self) -> None:
        """Read all of it once more: nothing that was promised is gone or changed."""
        self.look()
        found: dict[str, list[bytes]] = {account_of(place): [] for place in self._accounts}
        for name, identity in self._ask(ALL_PAID):
            found[name].append(identity)
        for place, account in self._accounts.items():
            if found[account_of(place)] != account.model.healthy:
                raise Violation("lost rows", f"{self._name}: {account_of(place)}")
            if not account.row:  # nobody has made this ledger
                continue
            for at, _, kind, meta, body in self._ask(RECORDS, (account.row[0], 0)):
                account.model.same(at, (kind, bytes(meta), bytes(body)))


def account_of(place: Place) -> str:
    return f"{place[0]} {place[1]}/{place[2]}"
