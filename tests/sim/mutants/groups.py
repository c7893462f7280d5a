"""Mutants of groups: shares, giving back, taking over, going back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.broker import balance
from oncemq.core.broker import groups as broker_groups
from oncemq.core.broker.balance import Balance
from oncemq.core.broker.groups import GroupTable
from oncemq.core.broker.membership import Membership
from oncemq.core.consumer import seeker
from oncemq.core.consumer.grant import GrantHolder
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.processed import Processed
from oncemq.core.consumer.window import Window
from oncemq.proof.verify import ledgers as verify_ledgers
from oncemq.shells.ledger import files as ledger_files
from oncemq.shells.ledger.files import LedgerFiles
from oncemq.storage.recovery import read_owner
from tests.sim.mutants.table import mutant, nothing

SHARES = ("tests/core/broker/test_balance.py",)
MOVES = ("tests/core/consumer/test_seeker.py", "tests/proof/verify/test_moves.py")


def _leave_at_once(original: Any) -> Any:
    def broken(self: Any, next_offset: int, now_ms: int, out: Any) -> None:
        original(self, next_offset, now_ms, out)
        out.sends.append(out.sends_after_sync.pop())

    return broken


mutant(
    "given back before the commit is synced",
    "Leave names an offset that is durable",
    (GrantHolder, "leave", _leave_at_once),
    tests=("tests/core/broker/test_group_members.py",),
)


def _any_lease(_original: Any) -> Any:
    return lambda _self, _key, _epoch: None


mutant(
    "grant checked only at the join",
    "fetches, renewals and leaves need the live epoch",
    (GroupTable, "check", _any_lease),
    tests=("tests/core/broker/test_groups.py",),
)


def _unfenced(original: Any) -> Any:
    def broken(self: Any, epoch: int) -> Any:
        log = original(self, epoch)
        log.__class__ = type("Unfenced", (type(log),), {"check_fence": lambda _self: None})
        return log

    return broken


mutant(
    "takeover sharing a ledger",
    "who was replaced writes nothing more that counts",
    (LedgerFiles, "open", _unfenced),
    tests=("tests/core/broker/test_group_members.py",),
)
mutant(
    "nothing is ever asked back",
    "members share evenly in the end",
    (Balance, "revoke", lambda _original: lambda *_args: (False, None)),
)
mutant(
    "nothing is kept for who is below its share",
    "a member with its share waits for the others",
    (Balance, "kept_for", nothing),
    tests=SHARES,
)
mutant(
    "kept for who does not come",
    "a free partition is kept for a short time only",
    (balance, "KEEP_MS", lambda _original: 1 << 40),
    (balance, "ASKED_MS", lambda _original: 1 << 40),
    tests=SHARES,
)
mutant(
    "the dead keep their share",
    "who was not heard for long has no share",
    (balance, "MEMBER_MS", lambda _original: 1 << 40),
    tests=SHARES,
)
mutant(
    "moved for a guest",
    "nothing is taken for a member that is there for a moment",
    (balance, "STEADY_MS", lambda _original: 0),
    tests=SHARES,
)
mutant(
    "moved again and again",
    "a partition is not taken twice in a short time",
    (balance, "MOVE_PAUSE_MS", lambda _original: 0),
    tests=SHARES,
)
mutant(
    "moved before all are known",
    "a new broker waits until it knows the members",
    (balance, "SETTLE_MS", lambda _original: 0),
    tests=SHARES,
)
mutant(
    "promises are not counted",
    "a partition on its way counts for who gets it",
    (
        Balance,
        "shares",
        lambda original: (
            lambda self, share, partitions, now_ms: original(
                _without_promises(self, share), share, partitions, now_ms
            )
        ),
    ),
    tests=SHARES,
)


def _without_promises(table: Any, share: Any) -> Any:
    if share in table._shared:
        table._shared[share].promised.clear()
    return table


mutant(
    "a copy from before going back is taken",
    "a ledger has the generation in which an operator went back",
    (
        GroupTable,
        "apply_rewound",
        lambda original: lambda self, record: (original(self, record), self.rewound.clear())[0],
    ),
    tests=MOVES,
)
mutant(
    "skipped ranges lost by compaction",
    "what was passed over by order stays known",
    (
        Ledger,
        "_rarely",
        lambda original: (
            lambda self: {n: v for n, v in original(self).items() if n not in {"skips", "reached"}}
        ),
    ),
    tests=MOVES,
)
mutant(
    "an order to move says nothing",
    "what is jumped over is recorded",
    (seeker, "Skipped", lambda original: lambda t, a, _b, why: original(t, a, a, why)),
    tests=MOVES,
)


def _left_out_is_lost(original: Any) -> Any:
    def broken(self: Window, number: int) -> Any:
        head, tail = original(self, number)
        return head, replace(tail, first_offset=self.offset_of(number))

    return broken


mutant(
    "what is passed over in front of a failing message is lost",
    "commits follow each other without holes",
    (Window, "split", _left_out_is_lost),
    faults=("seek",),
)


def _forgets_what_was_processed(original: Any) -> Any:
    def broken(self: Ledger, skip: Any) -> None:
        original(self, skip)
        if skip.next_offset < skip.first_offset:
            self.processed = Processed()

    return broken


mutant(
    "going back forgets what was processed",
    "a message that is read again is not handled again",
    (Ledger, "_skip", _forgets_what_was_processed),
    faults=("seek",),
)
mutant(
    "the broker does not go back",
    "after a rewind the ledger may stand at the lower offset",
    (
        GroupTable,
        "apply_rewound",
        lambda original: lambda self, record: original(self, replace(record, next_offset=1 << 40)),
    ),
    faults=("seek",),
)
mutant(
    "moves are not seen by the proof",
    "verify counts what was skipped by order",
    (verify_ledgers, "after_skip", lambda _original: lambda skips, _skip: skips),
    tests=MOVES,
)


def _any_lock(_original: Any) -> Any:
    return lambda join, grant: join.lock_held and join.highest_generation >= grant.epoch


def _any_file(original: Any) -> Any:
    def broken(disk: Any, path: str, lock: Any) -> Any:
        found = original(disk, path, lock)
        return read_owner(disk, path) if found is None else found

    return broken


def _any_machine(_original: Any) -> Any:
    return ()


mutant(
    "the lock file of a copied ledger proves its owner dead",
    "a live owner is never proved dead",
    (broker_groups, "_proves_death", _any_lock),
    (ledger_files, "maker_of", _any_file),
    (ledger_files, "_SAME_MACHINE", _any_machine),
    faults=("copied ledger",),
)
mutant(
    "a lock proves its maker dead in any place",
    "a copied ledger's lock proves nothing",
    (ledger_files, "maker_of", _any_file),
    tests=("tests/shells/ledger/test_files.py",),
)
mutant(
    "a lock proves its maker dead on any machine",
    "the disk of another machine proves nothing",
    (ledger_files, "_SAME_MACHINE", _any_machine),
    tests=("tests/shells/ledger/test_files.py",),
)
mutant(
    "a lock in another place than the grant's proves death",
    "the broker compares host and path with the grant",
    (broker_groups, "_proves_death", _any_lock),
    tests=("tests/core/broker/test_groups.py",),
)


def _numbers_from_zero(original: Any) -> Any:
    def broken(self: Any, *args: Any, replaces: Any = None, **options: Any) -> None:
        del replaces
        original(self, *args, **options)

    return broken


mutant(
    "the ledger in place of a lost one numbers its outputs from 0",
    "outputs of a new ledger are never taken for those of the lost one",
    (seeker.SeekerCore, "__init__", _numbers_from_zero),
    tests=("tests/core/consumer/test_seeker.py",),
)
mutant(
    "an empty ledger goes on behind outputs that it has sent",
    "a ledger restored to the time before its first record is refused",
    (Membership, "_has_sent", lambda _original: lambda _self, _key: False),
    tests=("tests/core/broker/test_groups.py",),
)
