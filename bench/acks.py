"""How long a producer waits for an acknowledgement while another one stores ids at full speed."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.disk_floor import Floor
from bench.processes import Cast, Running
from oncemq.library.producing.producer import Producer

_TOPIC = "probe"
_PAUSE_S = 0.002  # between two sends: a sender of its own, not a second flood


def measure(directory: Path, ids: int, size: int) -> dict[str, Any]:
    """Store `ids` random ids by `send_many` in one process; send single messages from this one."""
    waits: list[float] = []
    with tempfile.TemporaryDirectory(dir=directory) as place, Cast() as cast:
        broker, endpoint = cast.broker(Path(place))
        flood = cast.start("sender", ["-m", "bench.sender", endpoint, str(ids), str(size), "uuid"])
        floor = Floor(Path(place) / "floor")
        assert flood.line() == "ready"
        ended = _told_at_end(flood)
        with Producer(broker=endpoint) as producer:
            producer.send(_TOPIC, b"warm", id="warm").result(30)
            started = time.perf_counter()
            flood.tell("go")
            while not ended:
                body = os.urandom(size)
                start = time.perf_counter()
                producer.send(_TOPIC, body, id=os.urandom(16)).result(60)
                waits.append(time.perf_counter() - start)
                floor.write(4096)
                time.sleep(_PAUSE_S)
        seconds = time.perf_counter() - started
        assert json.loads(ended[0])["appended"] == ids
        broker.stop()
    taken = sorted(waits)
    return {
        "ids": ids,
        "ids_per_s": round(ids / seconds),
        "acks": len(taken),
        "ack_p50_ms": round(taken[len(taken) // 2] * 1e3, 2),
        "ack_p99_ms": round(taken[len(taken) * 99 // 100] * 1e3, 2),
        "ack_p99_9_ms": round(taken[len(taken) * 999 // 1000] * 1e3, 2),
        "ack_longest_ms": round(taken[-1] * 1e3, 2),
        **floor.figures(),
    }


def _told_at_end(flood: Running) -> list[str]:
    """Return a list that gets the last line of the sender."""
    told: list[str] = []
    threading.Thread(target=lambda: told.append(flood.line()), daemon=True).start()
    return told
