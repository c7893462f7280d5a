"""Producer, broker and consumer as three processes, against the naive prototype, turn by turn."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import disk_floor, naive
from bench.app import TOPIC
from bench.processes import PATIENCE_S, Cast, Failed, Running

Figures = dict[str, Any]


def run_once(directory: Path, messages: int, size: int, kind: str) -> Figures:
    """Move all messages once; return msgs_per_s and the CPU seconds of each process.

    The clock runs from the first send call to the consumer's last commit being durable.
    """
    logs = directory / "logs"
    with Cast() as cast:
        broker, endpoint = cast.broker(directory)
        consumer = cast.start(
            "consumer",
            [
                "consumer.py",
                "bench.app:app",
                f"--broker={endpoint}",
                f"--state={directory / 'consumers'}",
            ],
            logs,
        )
        consumer.wait_event("consumer.granted")
        arguments = [endpoint, str(messages), str(size), kind]
        producer = cast.start("producer", ["-m", "bench.sender", *arguments])
        if producer.line() != "ready":
            raise Failed("the producer said something else than ready")
        processes = {"producer": producer, "broker": broker, "consumer": consumer}
        for process in processes.values():
            process.start_clock()
        producer.tell("go")
        sent = json.loads(producer.line())
        finished = _wait_committed(consumer, messages)
        cpu = {name: round(process.cpu_s(), 3) for name, process in processes.items()}
        summary = json.loads(consumer.stop().splitlines()[-1])
        if summary["processed"] != messages or summary["offsets"] != {f"{TOPIC}/0": messages}:
            raise Failed(f"the consumer says {summary}")
        broker.stop()
    return {"msgs_per_s": messages / (finished - sent["started"]), "cpu_s": cpu}


def _wait_committed(consumer: Running, messages: int) -> float:
    """Return when, in monotonic seconds, the commit of the last message was durable."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for event in consumer.new_events():
            if event["event"] == "commit.synced" and event["next_offset"] == messages:
                return float(event["mono_ns"]) / 1e9
        if consumer.process.poll() is not None:
            break
        time.sleep(0.02)
    raise Failed("the consumer did not commit all messages")


def measure(directory: Path, messages: int, size: int, kind: str, rounds: int) -> Figures:
    """Run both contenders `rounds` times in turn, with the disk measured between them.

    The ratio is the median of the rounds' own ratios: what the machine does to one round it does
    to both.
    """
    ours: list[Figures] = []
    others: list[Figures] = []
    floors: list[float] = []
    syncs: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as place:
            others.append(naive.run(Path(place), messages, size, kind))
        with tempfile.TemporaryDirectory(dir=directory) as place:
            ours.append(run_once(Path(place), messages, size, kind))
        floors.append(disk_floor.write_mb_per_s(directory))
        syncs.append(disk_floor.fdatasync_p50_ms(directory))
    speed = statistics.median(one["msgs_per_s"] for one in ours)
    naive_speed = statistics.median(one["msgs_per_s"] for one in others)
    pairs = zip(ours, others, strict=True)
    ratios = [mine["msgs_per_s"] / other["msgs_per_s"] for mine, other in pairs]
    return {
        "msgs_per_s": round(speed),
        "mb_per_s": round(speed * size / 1e6, 1),
        "floor_mb_per_s": round(statistics.median(floors), 1),
        "fdatasync_p50_ms": round(statistics.median(syncs), 3),
        "naive_msgs_per_s": round(naive_speed),
        "ratio": round(statistics.median(ratios), 3),
        "cpu_s": _median_cpu(ours),
        "naive_cpu_s": _median_cpu(others),
        "send_call": "send_many",
        "messages": messages,
        "size": size,
        "ids": kind,
        "rounds": rounds,
    }


def _median_cpu(runs: list[Figures]) -> dict[str, float]:
    return {
        role: round(statistics.median(run["cpu_s"][role] for run in runs), 3)
        for role in ("producer", "broker", "consumer")
    }
