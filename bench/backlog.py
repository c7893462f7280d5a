"""Whether the broker's memory grows while nobody consumes what producers send at full speed."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.processes import Cast, Failed

_ENDLESS = 10**12
_SAMPLE_S = 0.5


def measure(directory: Path, seconds: int, size: int, kind: str) -> dict[str, Any]:
    """Send for `seconds`; compare the memory after a fifth of the time with that at the end."""
    samples: list[int] = []
    with tempfile.TemporaryDirectory(dir=directory) as text, Cast() as cast:
        place = Path(text)
        broker, endpoint = cast.broker(place)
        flood = cast.start(
            "sender", ["-m", "bench.sender", endpoint, str(_ENDLESS), str(size), kind]
        )
        assert flood.line() == "ready"
        flood.tell("go")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(_SAMPLE_S)
            if flood.process.poll() is not None:
                raise Failed("the sender ended before its time")
            samples.append(_anonymous_bytes(broker.process.pid))
        flood.kill()
        stored = sum(path.stat().st_size for path in (place / "broker").rglob("*.log"))
        started = time.perf_counter()
        broker.stop()
        stopped = time.perf_counter() - started
    part = max(1, len(samples) // 10)
    early = statistics.median(samples[2 * part : 3 * part] or samples)
    late = statistics.median(samples[-part:])
    return {
        "seconds": seconds,
        "log_bytes": stored,
        "anon_early_mb": round(early / 1e6, 1),
        "anon_late_mb": round(late / 1e6, 1),
        "anon_most_mb": round(max(samples) / 1e6, 1),
        "growth": round(late / early - 1, 3) if early else 0.0,
        "stopped_s": round(stopped, 3),
        "ids": kind,
    }


def _anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process; 0 where /proc is missing."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024
