"""`oncemq fsck`: is every byte on the disk what was written there?"""

from __future__ import annotations

import os

import click

from ..library.backups.fsck import check_backups, check_files
from ..runtime.os_disk import OsDisk
from ..runtime.settings import Settings
from ..storage.check import Finding
from .backup import pause, progress_of
from .config import setting_options
from .output import ExitCode, print_json, progress_line, say


@click.command("fsck")
@click.argument("backup", metavar="[BACKUP]", required=False, type=click.Path(file_okay=False))
@setting_options("data", "state")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fsck(as_json: bool, backup: str | None, **flags: str | None) -> None:
    """Check every generation, segment, frame, snapshot and index file of broker and ledgers.

    With BACKUP, check a backup, or all backups in that directory, instead. Nothing is changed, and
    broker and consumers may keep running. One line for each finding, with file, offset and what to
    do. Exit status 1 if anything is damaged; notes, such as leftovers of a crash, do not count.
    """
    disk, settings = OsDisk(), Settings.load(flags=flags)
    with progress_line() as show:
        if backup is not None:
            found = list(check_backups(disk, backup, progress_of("fsck", show), pause))
        else:
            data = _there("--data", settings.data, given=flags["data"] is not None)
            state = _there("--state", settings.state, given=flags["state"] is not None)
            if data is None and state is None:
                raise click.UsageError(f"neither {settings.data} nor {settings.state} exists")
            found = list(check_files(disk, data, state, progress_of("fsck", show), pause))
    damaged = [finding for finding in found if finding.damage]
    if as_json:
        print_json({"ok": not damaged, "findings": [_row(finding) for finding in found]})
    else:
        for finding in found:
            say(finding)
        say(f"{len(damaged)} damaged" if damaged else "clean")
    if damaged:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _there(flag: str, directory: str, *, given: bool) -> str | None:
    if os.path.isdir(directory):
        return directory
    if given:
        raise click.UsageError(f"{flag} {directory}: there is no such directory")
    return None


def _row(finding: Finding) -> dict[str, object]:
    return {
        "damage": finding.damage,
        "path": finding.path,
        "offset": finding.offset,
        "reason": finding.reason,
        "advice": finding.advice,
    }
