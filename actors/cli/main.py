"""The command group. A command's module is loaded when that command runs and not before.

So `oncemq --help` needs no ZeroMQ, and `oncemq state` reads files without the client library. A
command whose module is absent from this installation is neither listed nor found.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from .. import __version__
from ..errors import OnceMQError
from ..ids import did_you_mean
from ..runtime.diagnostics import tell
from .output import (
    ExitCode,
    exit_code_of,
    flush_stdout,
    keep_standard_streams,
    print_error,
)


class Entry(NamedTuple):
    """Where a command lives ("module:command", the module beside this one) and its one line."""

    target: str
    help: str
    hidden: bool = False


COMMANDS: dict[str, Entry] = {
    "broker": Entry("broker:broker", "Run the broker that owns the log."),
    "producer": Entry("producer:producer", "Send the lines or rows of a file."),
    "consumer": Entry("consumer:consumer", "Run the handlers of MODULE:APP."),
    "relay": Entry("relay:relay", "Send the committed rows of an outbox table."),
    "supervise": Entry("supervise:supervise", "Restart a command with back-off when it crashes."),
    "state": Entry("state:state", "Print the committed state of a group."),
    "ledger": Entry("ledger:ledger", "Export, check or import one ledger as a file."),
    "producers": Entry("producers:producers", "List producer names, or retire idle ones."),
    "topics": Entry("topics:topics", "List or create topics."),
    "groups": Entry("groups:groups", "Show groups and their lag; move a group's offset."),
    "verify": Entry("verify:verify", "Prove from the files: each id processed once."),
    "explain": Entry("explain:explain", "Trace one message: offset, commit, outputs."),
    "dlq": Entry("dlq:dlq", "Show, replay or drop dead letters."),
    "effects": Entry("effects:effects", "List and resolve unknown effects."),
    "dump": Entry("dump:dump", "Print the records of a log directory."),
    "backup": Entry("backup:backup", "Back up broker and ledgers while they run."),
    "restore": Entry("backup:restore", "Restore a backup into new directories."),
    "fsck": Entry("fsck:fsck", "Check every byte of broker, ledgers or a backup."),
    "config": Entry("config:config", "Print each setting and its source."),
    "sim": Entry("sim:sim", "Run seeded simulations."),
    "chaos": Entry("chaos:chaos", "Kill and freeze your application, prove the result."),
    "node": Entry("node:node", "Speak JSON lines on stdin and stdout.", hidden=True),
}


def _module(entry: Entry) -> str:
    return f"{__package__}.{entry.target.partition(':')[0]}"


class LazyGroup(click.Group):
    """A group that knows its commands by name and loads one when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands whose module is installed."""
        del ctx
        return [
            name
            for name, entry in COMMANDS.items()
            if not entry.hidden and importlib.util.find_spec(_module(entry)) is not None
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None or importlib.util.find_spec(_module(entry)) is None:
            return None
        command = getattr(importlib.import_module(_module(entry)), entry.target.partition(":")[2])
        assert isinstance(command, click.Command), f"{entry.target} is not a command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = did_you_mean(args[0], self.list_commands(ctx))
            if near:
                ctx.fail(f"there is no command {args[0]!r}{near}")
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name].help) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="oncemq")
def cli() -> None:
    """OnceMQ: an exactly-once message queue.

    Exit status: 0 everything is durably done, 1 failure, 2 wrong usage, 3 fenced by a newer owner,
    4 ended in good order but something waits for you (parked messages, held effects), 130 Ctrl-C.
    """


def _call(command: click.Command, arguments: Sequence[str] | None, program: str) -> int:
    """Run `command`; every way in which it can end becomes an exit status."""
    keep_standard_streams()
    return flush_stdout(_run(command, arguments, program))


def _run(command: click.Command, arguments: Sequence[str] | None, program: str) -> int:
    try:
        result = command.main(args=arguments, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        tell(shown.getvalue().rstrip("\n"), block=True, patience_s=1)
        return exit_code_of(error)
    except BrokenPipeError:  # the reader of our stdout is gone, as `head` is
        return ExitCode.FAILED
    except (KeyboardInterrupt, click.Abort) as error:
        return exit_code_of(error)
    except UnicodeEncodeError as error:
        if not any(map(_is_undecodable, sys.argv if arguments is None else arguments)):
            raise
        tell(f"error: an argument is no valid UTF-8: {error.object!r}")
        return ExitCode.USAGE
    except SystemExit:  # of code of the user's: its status would say that all is done
        tell("error: code of your application called sys.exit()", patience_s=1)
        return ExitCode.FAILED
    except (OnceMQError, OSError) as error:  # anything else is a bug and shows its traceback
        return print_error(error)
    return result if isinstance(result, int) else ExitCode.DONE


def _is_undecodable(argument: str) -> bool:
    """Return whether Python took bytes of an argument over as halves of surrogates."""
    return re.search("[\ud800-\udfff]", argument) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `oncemq` command and return its exit status."""
    return _call(cli, arguments, "oncemq")


def run(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command as a program of its own, as the scripts do."""
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        tell(f"error: this installation has no command {name!r}")
        return ExitCode.FAILED
    return _call(command, arguments, os.path.basename(sys.argv[0]) or name)
