"""The producer process of the pipeline: `python -m bench.sender ENDPOINT MESSAGES SIZE IDS`."""

from __future__ import annotations

import json
import sys
import time
from collections import deque

from bench.app import TOPIC
from bench.workload import BATCH, id_maker, values
from oncemq.library.producing.producer import Producer

CALLS_OPEN = 128  # calls whose verdicts are waited for only later


def main(endpoint: str, messages: int, size: int, kind: str) -> None:
    """Send all messages by send_many and check every verdict."""
    batch = values(size)
    make = None if kind == "sequence" else id_maker(kind)
    appended = 0
    with Producer("bench" if make is None else None, broker=endpoint) as producer:
        # The hello and the first sends of a connection are no part of a steady pipeline's speed.
        warm = batch[:1]
        ids = None if make is None else ["warm"]
        producer.send_many(f"{TOPIC}-warm", warm, ids=ids).result(30)
        print("ready", flush=True)
        input()  # the starting gun
        started = time.monotonic()
        pending = deque()
        for sent in range(0, messages, BATCH):
            part = batch[: messages - sent]
            ids = None if make is None else make(len(part))
            pending.append(producer.send_many(TOPIC, part, ids=ids))
            if len(pending) > CALLS_OPEN:
                appended += pending.popleft().result(60).appended
        appended += sum(one.result(60).appended for one in pending)
    assert appended == messages
    print(json.dumps({"started": started, "appended": appended}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
