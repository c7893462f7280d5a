"""Whether a ledger belongs to a place and follows the log that a grant names."""

from __future__ import annotations

from ..errors import StoreMismatch
from ..protocol import Granted
from .consumer_fetch import regressed
from .ledger import Ledger


def check_follows(ledger: Ledger, place: tuple[str, str, int], grant: Granted) -> None:
    """Raise StoreMismatch or LogRegressed unless the ledger of `place` follows the granted log."""
    started = ledger.started
    assert started is not None, "a ledger without a first record follows any log"
    if (started.group, started.topic, started.partition) != place:
        raise StoreMismatch(
            f"the ledger belongs to group {started.group}, "
            f"{started.topic}/{started.partition}, not to {'/'.join(map(str, place))}"
        )
    if (started.log_id, started.topic_id) != (grant.log_id, grant.topic_id):
        raise StoreMismatch(
            f"the ledger follows log {started.log_id.hex()} topic {started.topic_id.hex()}, "
            f"the broker has log {grant.log_id.hex()} topic {grant.topic_id.hex()}"
        )
    if grant.end_offset < ledger.next_offset:
        raise regressed(place, ledger.next_offset, grant.end_offset)
