"""Every byte of every specimen, in three ways, and all other damage: `make corruption`.

    python -m tests.corruption.sweep [--every N]

Prints what was tried and what came of it. Exit 1 if any damage was silent.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice

from oncemq.runtime.workers import worker_pool
from tests.corruption.judge import judge
from tests.corruption.mutations import (
    MASKS,
    Case,
    added_bytes,
    cut_tails,
    flip,
    flip_places,
    generations,
    moved_files,
)
from tests.corruption.specimens import LARGE, SMALL, Specimen

SHARES = 24  # pieces of work for each specimen
RESERVED_EVERY = 16  # of the zeros that are only reserved, how many are left out
SHOWN_MAX = 20
SPECIMENS = SMALL | LARGE


def flips(job: tuple[str, int, int]) -> tuple[str, Counter[str], list[str]]:
    name, share, every = job
    specimen = SPECIMENS[name]()
    places = flip_places(specimen)
    written = sum(specimen.used(path) for path in specimen.files())
    chosen = places[:written] + places[written::RESERVED_EVERY]
    mine = islice(chosen, share, None, SHARES * every)
    return name, *_judged(
        specimen, (flip(specimen, *place, mask) for place in mine for mask in MASKS)
    )


def _judged(specimen: Specimen, cases: Iterable[Case]) -> tuple[Counter[str], list[str]]:
    """Count the verdicts; an error that nobody expected is silent damage too."""
    verdicts: Counter[str] = Counter()
    silent = []
    for damage, disk in cases:
        try:
            verdicts[judge(specimen, disk, damage)] += 1
        except Exception as error:
            verdicts["silent"] += 1
            silent.append(f"{specimen.name}: {damage}: {error!r}")
    return verdicts, silent


def others(name: str) -> tuple[str, Counter[str], list[str]]:
    specimen = SPECIMENS[name]()
    source = random.Random(1)
    large = source if name in LARGE else None
    return name, *_judged(
        specimen,
        chain(
            cut_tails(specimen, large),
            added_bytes(specimen, source),
            moved_files(specimen),
            generations(specimen),
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="flip one byte in N")
    asked = parser.parse_args()
    started = time.monotonic()
    flipped: Counter[str] = Counter()
    other: Counter[str] = Counter()
    silent: list[str] = []
    jobs = [(name, share, asked.every) for name in SPECIMENS for share in range(SHARES)]
    with worker_pool(os.cpu_count() or 1) as pool:
        for total, results in (
            (other, pool.map(others, SPECIMENS)),
            (flipped, pool.map(flips, jobs)),
        ):
            for name, verdicts, wrong in results:
                total.update(verdicts)
                silent += wrong
                print(
                    f"{time.monotonic() - started:6.0f} s  {name:16} {dict(verdicts)}", flush=True
                )
    for title, counts in (("flips", flipped), ("other damage", other)):
        print(f"{title}: {sum(counts.values())} tried, {dict(sorted(counts.items()))}")
    print(f"detected {_detected(flipped) + _detected(other)}, "
          f"harmless {flipped['harmless'] + other['harmless']}, silent {len(silent)}")  # fmt: skip
    for line in silent[:SHOWN_MAX]:
        print(f"SILENT {line}")
    return 1 if silent else 0


def _detected(counts: Counter[str]) -> int:
    return sum(counts[verdict] for verdict in ("refused", "cut", "reported"))


if __name__ == "__main__":
    sys.exit(main())
