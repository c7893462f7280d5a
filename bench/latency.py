"""One message at a time: from `send` to a durable acknowledgement, against the bare minimum.

The floor is a process that appends what it gets to a file, syncs it and echoes it: one ZeroMQ
round trip and one fdatasync, no queue at all.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

from bench.processes import Cast
from oncemq.library.producing.producer import Producer

WARM_UP = 20


def run_echo(directory: str) -> None:
    """Append, sync, echo."""
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    file = os.open(f"{directory}/echo", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        peer, body = socket.recv_multipart()
        os.write(file, body)
        os.fdatasync(file)
        socket.send_multipart((peer, body))


def measure(directory: Path, messages: int, size: int) -> dict[str, Any]:
    """Send `messages` one after the other, each after the acknowledgement of the last.

    Sends and bare round trips take turns, so that both meet the same disk.
    """
    body = os.urandom(size)
    ours: list[float] = []
    floor: list[float] = []
    with (
        tempfile.TemporaryDirectory(dir=directory) as place,
        Cast() as cast,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        broker, endpoint = cast.broker(Path(place))
        echo = cast.start("echo", ["-m", "bench.latency", place])
        socket.connect(f"tcp://127.0.0.1:{echo.line()}")
        with Producer("latency", broker=endpoint) as producer:
            for _ in range(WARM_UP + messages):
                start = time.perf_counter()
                producer.send("latency", body).result(30)
                sent = time.perf_counter()
                socket.send(body)
                socket.recv()
                ours.append(sent - start)
                floor.append(time.perf_counter() - sent)
        broker.stop()
    taken = sorted(ours[WARM_UP:])
    return {
        "p50_ms": round(statistics.median(taken) * 1e3, 3),
        "p99_ms": round(taken[int(len(taken) * 0.99)] * 1e3, 3),
        "floor_ms": round(statistics.median(floor[WARM_UP:]) * 1e3, 3),
        "messages": messages,
        "size": size,
    }


if __name__ == "__main__":
    run_echo(sys.argv[1])
