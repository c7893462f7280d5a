"""No damage is silent: the right data, or a refusal that names file and offset.

Here each byte of the small specimens is flipped once, and places of the large ones are sampled;
`make corruption` flips every byte of all of them in three ways.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.corruption.judge import CUT, HARMLESS, REFUSED, REPORTED, Silent, judge
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
from tests.corruption.specimens import LARGE, SMALL, Specimen, copy_of

pytestmark = pytest.mark.slow

RESERVED_SAMPLE = 60
LARGE_SAMPLE = 250


def tally(title: str, specimen: Specimen, cases: Iterable[Case]) -> Counter[str]:
    """Judge each case and count the verdicts; Silent stops at once."""
    verdicts: Counter[str] = Counter()
    for damage, disk in cases:
        verdicts[judge(specimen, disk, damage)] += 1
    print(f"\n{title}, {specimen.name}: {sum(verdicts.values())} tried, {dict(verdicts)}, 0 silent")
    return verdicts


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_the_specimens_are_whole(name: str) -> None:
    """Undamaged, each gives all its data, for owner and reader, and takes more."""
    specimen = (SMALL | LARGE)[name]()
    from tests.corruption.judge import Damage

    assert judge(specimen, copy_of(specimen.disk), Damage("", 0, "nothing")) == HARMLESS


@pytest.mark.parametrize("name", SMALL)
def test_every_byte_flipped(name: str, rng: random.Random) -> None:
    """Each byte of each file, by one of three masks; of the reserved zeros a sample."""
    specimen = SMALL[name]()
    places = flip_places(specimen)
    written = sum(specimen.used(path) for path in specimen.files())
    reserved = places[written:]
    places = places[:written] + rng.sample(reserved, min(len(reserved), RESERVED_SAMPLE))
    cases = (flip(specimen, *place, MASKS[n % 3]) for n, place in enumerate(places))
    verdicts = tally("flips", specimen, cases)
    assert verdicts[REFUSED] + verdicts[CUT] + verdicts[REPORTED] > len(places) // 3


@pytest.mark.parametrize("name", LARGE)
def test_bytes_of_large_files_flipped(name: str, rng: random.Random) -> None:
    """Logs and snapshots of 64 KiB, at random places, half of them in the snapshots."""
    specimen = LARGE[name]()
    assert sum(map(len, map(specimen.content, specimen.segments()))) >= 64 * 1024
    places = flip_places(specimen)[: sum(specimen.used(path) for path in specimen.files())]
    chosen = rng.sample(places, LARGE_SAMPLE)
    verdicts = tally("flips", specimen, (flip(specimen, *p, rng.choice(MASKS)) for p in chosen))
    assert verdicts[REFUSED] > 0


@pytest.mark.parametrize("name", SMALL)
def test_every_tail_cut(name: str) -> None:
    """Each file ends early, at each of its bytes: only what nothing vouches for may be missing."""
    verdicts = tally("cuts", SMALL[name](), cut_tails(SMALL[name]()))
    assert verdicts[REFUSED] > 0


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_bytes_added(name: str, rng: random.Random) -> None:
    """Zeros, chance, and records that were valid elsewhere: never a record that was not written."""
    specimen = (SMALL | LARGE)[name]()
    verdicts = tally("added", specimen, added_bytes(specimen, rng))
    assert verdicts[CUT] == 0


@pytest.mark.parametrize("name", SMALL)
def test_files_moved(name: str) -> None:
    """Segments, snapshots and manifests missing, empty, swapped, doubled."""
    verdicts = tally("moved", SMALL[name](), moved_files(SMALL[name]()))
    assert verdicts[REFUSED] > 0


@pytest.mark.parametrize("name", SMALL)
def test_generations_missing_or_unfinished(name: str) -> None:
    """An unfinished generation is passed over; one that is gone is never replaced by an empty log."""
    verdicts = tally("generations", SMALL[name](), generations(SMALL[name]()))
    assert verdicts[REFUSED] > 0
    assert verdicts[HARMLESS] > 0


def test_the_judge_sees_silent_damage() -> None:
    """A changed record with right checksums, a lost one, an invented one: each is called silent."""
    specimen = SMALL["killed_broker"]()
    from dataclasses import replace

    from tests.corruption.judge import Damage

    nothing = Damage("", 0, "nothing")
    position, kind, meta, body = specimen.records[2]
    for records in (
        [*specimen.records[:2], (position, kind, meta, body + b"x"), *specimen.records[3:]],
        specimen.records[:-1],
        [*specimen.records, (specimen.end, 1, b"", b"x")],
    ):
        with pytest.raises(Silent):
            judge(replace(specimen, records=records), copy_of(specimen.disk), nothing)
    with pytest.raises(Silent, match="another"):
        judge(replace(specimen, snapshots={}), copy_of(specimen.disk), nothing)
    with pytest.raises(Silent, match="ends at"):
        judge(replace(specimen, end=specimen.end + 1), copy_of(specimen.disk), nothing)
