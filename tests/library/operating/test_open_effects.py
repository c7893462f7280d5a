"""What an operator is told of an effect without a result: whether its call may be under way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.open_effects import ASK, UNKNOWN
from oncemq.library.operating.open_effects import RUNNING, OpenEffectsView, _Files, _Place
from oncemq.records import EffectEnded, EffectIntended, LedgerStarted
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.process import owner_facts
from oncemq.storage.log import FencedLog

TOPIC_ID = b"t" * 16
EPOCH = 5  # of the intent


class Home:
    """A ledger with one call."""

    def __init__(self, *, told: bool, dead: bool) -> None:
        self._dead = dead
        self.ledger = Ledger()
        self.ledger.apply(LedgerStarted("g", "orders", 0, TOPIC_ID, b"l" * 16, b"l" * 16, 0), 0)
        self.ledger.apply(EffectIntended(EPOCH, TOPIC_ID, 0, "key", "x", 1, ASK, 5), 0)
        if told:
            ended = EffectEnded(EPOCH, TOPIC_ID, 0, "x", 1, UNKNOWN, ASK, 0, b"why", 5)
            self.ledger.apply(ended, 0)

    def read(self) -> Ledger:
        return self.ledger

    def ordered(self, effect_id: str) -> None:
        del effect_id

    def owner_is_dead(self) -> bool:
        return self._dead


@pytest.mark.parametrize(
    ("epoch", "live", "dead", "told", "state"),
    [
        (EPOCH, True, False, False, RUNNING),
        (EPOCH, True, True, False, UNKNOWN),  # killed, and its lease still runs
        (EPOCH, False, False, False, UNKNOWN),
        (EPOCH + 1, True, False, False, UNKNOWN),  # a successor has been granted the partition
        (EPOCH - 1, True, False, False, RUNNING),  # its owner came after the broker was asked
        (EPOCH - 1, False, False, False, RUNNING),
        (EPOCH - 1, False, True, False, UNKNOWN),
        (EPOCH, True, False, True, UNKNOWN),
    ],
)
def test_a_call_is_running_while_its_owner_may_be_at_it(
    epoch: int, live: bool, dead: bool, told: bool, state: str
) -> None:
    """Nobody may speak about it then; whoever asks hears that."""
    home: Any = Home(told=told, dead=dead)
    client: Any = None
    view = OpenEffectsView(client, host="here")
    [found] = view._look(_Place(("g", "orders", 0), epoch, "path", live, home))
    assert found.state == state


def test_a_copied_ledger_does_not_prove_that_the_caller_of_an_effect_is_dead(
    tmp_path: Path,
) -> None:
    """An order about a call that may be under way would be taken for its result."""
    home = str(tmp_path / "ledger")
    log = FencedLog.open(
        OsDisk(), home, generation=None, owner=owner_facts(), create_log_id=b"l" * 16
    )
    copy = shutil.copytree(home, tmp_path / "copy")
    assert not _Files(home).owner_is_dead()
    assert not _Files(str(copy)).owner_is_dead()
    log.close()
    assert _Files(home).owner_is_dead()
    assert not _Files(str(copy)).owner_is_dead()
