"""`oncemq backup` and `oncemq restore`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import click

from ..library.backups.make import Job, Made, check_apart
from ..library.backups.restore import Restore, Restored
from ..library.backups.sink import SqliteCopies
from ..runtime.diagnostics import tell as tell_person
from ..runtime.os_disk import OsDisk, filesystem_warning
from ..runtime.process import draw
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, progress_line, say

_PAUSE_S = 0.05
_MIB = 1024 * 1024


@click.command("backup")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@setting_options("data", "state")
@click.option("--sink", metavar="URL", help="Also the database of a SQLite sink.")
@click.option("--copy", is_flag=True, help="Copy every byte: no block is shared with the original.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def backup(
    directory: str, sink: str | None, copy: bool, as_json: bool, **flags: str | None
) -> None:
    """Back up broker and ledgers into a new directory below DIR, while they run or not.

    The backup shows one moment: all that was acknowledged before it began, and ledgers that fit. Files
    that never change are hard links, to the backup before or to the original, so a damaged block
    is damaged in all of them; --copy makes a backup that shares nothing with the original. Consumers
    on other machines, and PostgreSQL sinks, are backed up on their own: see docs/BACKUP.md.
    """
    settings = Settings.load(flags=flags)
    state: str | None = settings.state
    if not os.path.isdir(settings.state):
        if flags["state"] is not None:
            raise click.UsageError(f"--state {state}: there is no such directory")
        state = None
    real = os.path.realpath(directory)
    check_apart(real, os.path.realpath(settings.data), state and os.path.realpath(state))
    with progress_line() as show:
        made = Job(
            OsDisk(),
            real,
            os.path.abspath(settings.data),
            state and os.path.abspath(state),
            socket.gethostname(),
            _now_ms(),
            None if sink is None else SqliteCopies(sink),
            copy,
            progress_of("backup", show),
            pause,
        ).run()
    for note in [*made.notes, *filter(None, [filesystem_warning(real)])]:
        tell_person(f"note: {note}")
    if as_json:
        print_json(_made_row(made))
    else:
        files = len(made.catalog.files)
        new = made.copied_bytes + made.linked_bytes
        say(made.path)
        say(
            f"{1 + len(made.catalog.ledgers)} logs in {files} files: {new // _MIB} MiB new "
            f"({made.linked_bytes // _MIB} MiB of them links to the original), "
            f"{made.shared_bytes // _MIB} MiB shared with the backup before"
        )


def _made_row(made: Made) -> dict[str, object]:
    catalog = made.catalog
    return {
        "backup": made.path,
        "log_id": catalog.broker.log_id,
        "lineage": catalog.broker.lineage,
        "generation": catalog.broker.generation,
        "end": catalog.broker.end,
        "ledgers": len(catalog.ledgers),
        "sink": catalog.sink,
        "files": len(catalog.files),
        "copied_bytes": made.copied_bytes,
        "linked_bytes": made.linked_bytes,
        "shared_bytes": made.shared_bytes,
        "notes": made.notes,
    }


@click.command("restore")
@click.argument("directory", metavar="BACKUP", type=click.Path(exists=True, file_okay=False))
@click.option("--data", required=True, metavar="NEW", help="New directory of the broker's log.")
@click.option("--state", metavar="NEW", help="New directory of the ledgers, if there are any.")
@click.option("--sink", metavar="URL", help="New SQLite database of the sink, if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def restore(directory: str, data: str, state: str | None, sink: str | None, as_json: bool) -> None:
    """Restore BACKUP, or the newest backup in that directory, into new directories.

    Every byte is checked before anything is written. The restored log is a lineage of its own under
    higher epochs: clients that have met it no longer follow the original, and the original ends
    Fenced when it meets one of them. Stop the original before you start the copy.
    """
    with progress_line() as show:
        restored = Restore(
            OsDisk(),
            os.path.abspath(directory),
            os.path.abspath(data),
            state and os.path.abspath(state),
            None if sink is None else SqliteCopies(sink),
            socket.gethostname(),
            _now_ms(),
            draw(),
            progress_of("restore", show),
            pause,
        ).run()
    if as_json:
        print_json(_restored_row(restored))
    else:
        say(f"{restored.backup} restored into {data}" + (f" and {state}" if state else ""))
        say(f"lineage {restored.lineage.hex()}, epochs from {restored.generation + 1} on")


def _restored_row(restored: Restored) -> dict[str, object]:
    broker = restored.catalog.broker
    return {
        "backup": restored.backup,
        "log_id": broker.log_id,
        "lineage": restored.lineage.hex(),
        "generation": restored.generation,
        "end": broker.end,
        "ledgers": len(restored.catalog.ledgers),
        "bytes": restored.nbytes,
    }


def progress_of(verb: str, show: Callable[[str], None]) -> Callable[[str, int], None]:
    done = 0

    def tell(path: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        show(f"{verb}: {done // _MIB} MiB, {os.path.basename(path)}")

    return tell


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def pause() -> None:
    time.sleep(_PAUSE_S)
