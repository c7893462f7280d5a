"""Damage to specimens: bytes flipped, tails cut, bytes added, files swapped, missing, doubled."""

from __future__ import annotations

import posixpath
import random
from collections.abc import Iterator

from oncemq.storage import layout
from oncemq.storage.framing import COMMIT, HEADER, HEADER_BYTES
from oncemq.storage.memory import MemoryDisk, _Node
from tests.corruption.judge import Damage
from tests.corruption.specimens import DIRECTORY, Specimen, copy_of

MASKS = (0x01, 0x80, 0xFF)
Case = tuple[Damage, MemoryDisk]


def _with(specimen: Specimen, path: str, data: bytes) -> MemoryDisk:
    disk = copy_of(specimen.disk)
    node = disk._files[path] = _Node()
    node.data = bytearray(data)
    return disk


def flip(specimen: Specimen, path: str, offset: int, mask: int) -> Case:
    disk = copy_of(specimen.disk)
    disk._files[path].data[offset] ^= mask
    return Damage(path, offset, f"flipped by {mask:#04x}"), disk


def flip_places(specimen: Specimen) -> list[tuple[str, int]]:
    """Every byte of every file: first all that was written, then what is only reserved."""
    used, reserved = [], []
    for path in specimen.files():
        end = specimen.used(path)
        used += [(path, offset) for offset in range(end)]
        reserved += [(path, offset) for offset in range(end, len(specimen.content(path)))]
    return used + reserved


def cut_tails(specimen: Specimen, source: random.Random | None = None) -> Iterator[Case]:
    """Every file, cut at every byte; with `source` a few places of the large ones."""
    for path in specimen.files():
        data = specimen.content(path)
        lengths: list[int] = list(range(specimen.used(path)))
        reserved = range(specimen.used(path), len(data))
        lengths += [reserved[0], reserved[len(reserved) // 2]] if reserved else []
        if source is not None and len(lengths) > 200:
            lengths = sorted(source.sample(lengths, 200))
        for length in lengths:
            damage = Damage(path, length, f"cut to {length} bytes", lost=True)
            yield damage, _with(specimen, path, data[:length])


def added_bytes(specimen: Specimen, source: random.Random) -> Iterator[Case]:
    """Zeros, random bytes and old valid records, behind the end and behind what was written."""
    groups = list(old_frames(specimen))
    for path in specimen.files():
        data = specimen.content(path)
        added = [
            ("zeros", bytes(100)),
            ("one byte", b"\x01"),
            ("random bytes", source.randbytes(300)),
            ("many random bytes", source.randbytes(5000)),
            ("itself", data),
        ]
        if path.endswith(".log"):
            added += [(f"an old {kind}", frame) for kind, frame in groups]
        used = specimen.used(path)
        for name, more in added:
            yield (
                Damage(path, len(data), f"{name} behind the end"),
                _with(specimen, path, data + more),
            )
            if used < len(data):
                grown = data[:used] + more + data[used + len(more) :]
                yield (
                    Damage(path, used, f"{name} behind the last record"),
                    _with(specimen, path, grown),
                )


def old_frames(specimen: Specimen) -> Iterator[tuple[str, bytes]]:
    """Records and whole groups of this log, as they stand in its segments."""
    for path in specimen.segments():
        data = specimen.content(path)
        at = group = 64
        end = specimen.used(path)
        while at < end:
            length, kind, *_ = HEADER.unpack_from(data, at)
            after = at + HEADER_BYTES + length
            yield "record", data[at:after]
            if kind == COMMIT:
                yield "group", data[group:after]
                group = after
            at = after


def moved_files(specimen: Specimen) -> Iterator[Case]:
    """Every file missing, every two of a kind swapped, one put in the place of another."""
    files = [path for path in specimen.files() if not path.endswith(layout.CREATE_LOCK)]
    for path in files:
        disk = copy_of(specimen.disk)
        del disk._files[path]
        yield Damage(path, 0, "missing", exact=False, lost=True), disk
        yield Damage(path, 0, "empty", lost=True), _with(specimen, path, b"")
    for one in files:
        for two in files:
            if one == two or posixpath.splitext(one)[1] != posixpath.splitext(two)[1]:
                continue
            disk = _with(specimen, one, specimen.content(two))
            yield Damage(one, 0, f"a copy of {posixpath.basename(two)}", exact=False), disk
            if one < two:
                disk = _with(specimen, one, specimen.content(two))
                disk._files[two].data[:] = specimen.content(one)
                yield Damage(one, 0, f"swapped with {posixpath.basename(two)}", exact=False), disk
    for path in specimen.segments():
        for first in (specimen.end, specimen.end + 64, 2**62):
            name = posixpath.join(specimen.path, layout.segment_name(first))
            if name not in specimen.disk._files:
                yield (
                    Damage(name, 0, f"{posixpath.basename(path)} doubled", exact=False),
                    _with(specimen, name, specimen.content(path)),
                )


def generations(specimen: Specimen) -> Iterator[Case]:
    """Generations that are unfinished, doubled, renamed, without a manifest, or all gone."""
    number = specimen.generation
    higher = posixpath.join(DIRECTORY, layout.generation_name(number + 1))
    inside = [path for path in specimen.disk._files if path.startswith(specimen.path)]

    def with_higher(what: str, files: dict[str, bytes]) -> Case:
        disk = copy_of(specimen.disk)
        disk._directories.add(higher)
        for name, data in files.items():
            node = disk._files[posixpath.join(higher, name)] = _Node()
            node.data = bytearray(data)
        return Damage(higher, 0, what, exact=False), disk

    whole = {posixpath.basename(path): specimen.content(path) for path in inside}
    segments = {name: data for name, data in whole.items() if name.endswith(".log")}
    yield with_higher("an empty higher generation", {})
    yield with_higher("a higher one with a lock only", {layout.LOCK: whole[layout.LOCK]})
    yield with_higher("a higher one with the segments and no manifest", segments)
    yield with_higher("a higher one with a manifest that was not written", {layout.MANIFEST: b""})
    yield with_higher(
        "a higher one with a temporary manifest",
        segments | {layout.MANIFEST + layout.TEMPORARY: whole[layout.MANIFEST][:20]},
    )
    yield with_higher("the whole generation under a higher number", whole)
    yield with_higher("a manifest without segments", {layout.MANIFEST: whole[layout.MANIFEST]})

    disk = copy_of(specimen.disk)
    for path in inside:
        del disk._files[path]
    empty = Damage(specimen.path, 0, "the generation is empty", exact=False, nothing_left=True)
    yield empty, disk
    disk = copy_of(disk)
    disk._directories.discard(specimen.path)
    gone = Damage(specimen.path, 0, "the generation is gone", exact=False, nothing_left=True)
    yield gone, disk
    disk = copy_of(specimen.disk)
    del disk._files[posixpath.join(specimen.path, layout.MANIFEST)]
    yield Damage(specimen.path, 0, "the manifest is gone", exact=False), disk
