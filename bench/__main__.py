"""`python -m bench`: figures of this machine, each beside what the machine can do at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench import acks as acks_bench
from bench import backlog as backlog_bench
from bench import dedup as dedup_bench
from bench import latency as latency_bench
from bench import pipeline as pipeline_bench
from bench import processed as processed_bench
from bench import recover as recover_bench
from bench import retain as retain_bench
from bench.processes import Failed
from bench.workload import KINDS

Figures = dict[str, Any]

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
where = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data/bench"),
    show_default=True,
    help="Where logs are written meanwhile: on the disk that is meant.",
)
size_option = click.option(
    "--size", type=click.IntRange(1, 1_000_000), default=100, show_default=True
)


def messages_option(default: int) -> Callable[[Any], Any]:
    """The count of messages."""
    return click.option("--messages", type=click.IntRange(1), default=default, show_default=True)


@click.group()
def main() -> None:
    """Measure OnceMQ on this machine."""


@main.command()
@messages_option(2_000_000)  # a run of a third of a second would measure its own start and end
@size_option
@click.option("--ids", type=click.Choice(KINDS), default="sequence", show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@where
@as_json
def pipeline(
    messages: int, size: int, ids: str, rounds: int, directory: Path, as_json: bool
) -> None:
    """Throughput of producer, broker and consumer, in turn with a naive prototype."""
    _show("pipeline", as_json, directory, pipeline_bench.measure, messages, size, ids, rounds)


@main.command()
@messages_option(500)
@size_option
@where
@as_json
def latency(messages: int, size: int, directory: Path, as_json: bool) -> None:
    """Time from one send to its durable acknowledgement."""
    _show("latency", as_json, directory, latency_bench.measure, messages, size)


@main.command()
@click.option("--ids", type=click.IntRange(10), default=2_000_000, show_default=True)
@click.option(
    "--batches",
    type=click.IntRange(1, 100),
    default=8,
    show_default=True,
    help="Batches of 1,000 ids in each turn of the broker.",
)
@click.option(
    "--actor",
    type=click.Choice(["broker", "consumer", "sink"]),
    default="broker",
    show_default=True,
)
@where
@as_json
def dedup(ids: int, batches: int, actor: str, directory: Path, as_json: bool) -> None:
    """Speed and memory of the broker, or of a consumer, as it remembers more and more ids.

    A consumer has its ledger in files, or in a SQLite database (sink).
    """
    measure: Callable[..., Figures] = partial(dedup_bench.measure, batches=batches)
    if actor != "broker":
        measure = partial(processed_bench.measure, sink=actor == "sink")
    _show("dedup", as_json, directory, measure, ids)


@main.command()
@click.option("--ids", type=click.IntRange(1_000), default=2_000_000, show_default=True)
@size_option
@where
@as_json
def acks(ids: int, size: int, directory: Path, as_json: bool) -> None:
    """Waits of a producer for acknowledgements while another stores ids at full speed."""
    _show("acks", as_json, directory, acks_bench.measure, ids, size)


@main.command()
@click.option("--seconds", type=click.IntRange(2), default=30, show_default=True)
@size_option
@click.option("--ids", type=click.Choice(KINDS), default="uuid", show_default=True)
@where
@as_json
def backlog(seconds: int, size: int, ids: str, directory: Path, as_json: bool) -> None:
    """Memory of a broker while producers send at full speed and nobody consumes."""
    _show("backlog", as_json, directory, backlog_bench.measure, seconds, size, ids)


@main.command()
@messages_option(1_000_000)
@click.option(
    "--ids", type=click.Choice(["sequence", "explicit"]), default="sequence", show_default=True
)
@click.option(
    "--damaged",
    is_flag=True,
    help="Start once more, with the newest snapshot and the largest file of ids damaged.",
)
@where
@as_json
def recover(messages: int, ids: str, damaged: bool, directory: Path, as_json: bool) -> None:
    """Time until a killed broker answers again."""
    measure = partial(recover_bench.measure, damaged=damaged)
    _show("recover", as_json, directory, measure, messages, ids)


@main.command()
@click.option("--gigabytes", type=click.FloatRange(0.01), default=20.0, show_default=True)
@click.option("--bound-gb", type=click.FloatRange(0.001), default=1.0, show_default=True)
@click.option("--slow-every", type=click.IntRange(1), default=50, show_default=True)
@where
@as_json
def retain(
    gigabytes: float, bound_gb: float, slow_every: int, directory: Path, as_json: bool
) -> None:
    """Disk, answers and pauses of a bounded topic beside one that keeps all."""
    _show("retain", as_json, directory, retain_bench.measure, gigabytes, bound_gb, slow_every)


def _show(
    title: str, as_json: bool, directory: Path, measure: Callable[..., Figures], *arguments: Any
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        figures = measure(directory, *arguments)
    except Failed as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print(json.dumps(figures), flush=True)
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        for label, one in value.items() if isinstance(value, dict) else [("", value)]:
            shown = f"{one:,}" if isinstance(one, int | float) else str(one)
            table.add_row(f"{name} {label}".strip(), shown)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m bench"))
