"""The application under power cuts: rows, state and an output for each message, in one transaction.

It reads from the environment: POWER_GROUP, POWER_DB (the sink), POWER_GO (a file that is waited
for, once POWER_GO.waits is made: so whoever watches sees every later system call) and
POWER_WEAKENED, which takes away on purpose what makes a commit durable: `normal` (WAL with
synchronous=NORMAL) or `journal` (a rollback journal with synchronous=FULL).
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from oncemq import App, Message, Tx
from oncemq.library.sinks import sqlite as sqlite_sink
from oncemq.library.sinks.sqlite import FileWatch, SqliteSession

GROUP = os.environ["POWER_GROUP"]
CHECKPOINT_PAGES = 12  # so that checkpoints, too, fall into a short story
COMMIT_MESSAGES = 2
WAIT_S = 120.0
WEAKENED = {
    "": (),
    "normal": ("PRAGMA synchronous=NORMAL",),
    "journal": ("PRAGMA journal_mode=DELETE",),
}[os.environ.get("POWER_WEAKENED", "")]

app = App()


@app.consumer("orders", group=GROUP, sink="env:POWER_DB")
def pay(message: Message, tx: Tx) -> None:
    """One row, one output and a sum; the table is made by the first."""
    tx.sql("CREATE TABLE IF NOT EXISTS paid (place INTEGER, cents INTEGER)")  # a double row shows
    tx.sql("INSERT INTO paid VALUES (?, ?)", message.offset, int(message.value))
    tx.state["sum"] = tx.state.get("sum", 0) + int(message.value)
    tx.send(f"out-{GROUP}", message.value)
    if message.offset % COMMIT_MESSAGES == COMMIT_MESSAGES - 1:
        tx._unit.cut = True  # the call ends here, as when its time is over: this makes a commit


def _connect(session: SqliteSession) -> None:
    """Connect as always, then change what the story needs changed."""
    _real_connect(session)
    session._guarded = False
    for pragma in (f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}", *WEAKENED):
        sqlite3.Connection.execute(session._handed_out, pragma)
    session._guarded = True


if (
    "PRAGMA journal_mode=DELETE" in WEAKENED
):  # the watch would stop it: `-wal` is gone, its locks are not
    FileWatch.check = lambda _self: None  # type: ignore[method-assign]
    sqlite_sink._lock_open_file = lambda *_: None  # type: ignore[assignment]
_real_connect = SqliteSession._connect
SqliteSession._connect = _connect  # type: ignore[method-assign]

_go, _deadline = Path(os.environ["POWER_GO"]), time.monotonic() + WAIT_S
_go.with_suffix(".waits").touch()
while not _go.exists():
    if time.monotonic() > _deadline:
        raise TimeoutError("nobody watches")
    time.sleep(0.002)
