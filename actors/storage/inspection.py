"""Every byte of a log directory, listed item by item, also where it is damaged. Read-only.

Items are plain tables with a `kind`: generation, segment, record, commit, reserved, bad, snapshot.
The last item is the verdict that an opening would give.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from typing import Any
from zlib import crc32

from ..errors import CorruptLog, StorageError
from . import layout, snapshots
from .disk import Disk
from .document import Manifest
from .framing import (
    COMMIT,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BadFrame,
    decode_commit,
    decode_header,
    decode_segment_header,
    log_seed,
)
from .view import read_latest

Item = dict[str, Any]
_FRAMES = frozenset({"record", "commit", "bad"})


def inspect(disk: Disk, directory: str) -> Iterator[Item]:
    """Yield what lies in `directory`, generation by generation, and the verdict."""
    damaged: list[tuple[int, Item]] = []
    for number in layout.generations(disk, directory):
        for item in _generation(disk, directory, number):
            if item["kind"] in _FRAMES and item["verdict"] != "ok":
                damaged.append((number, item))
            yield item
    yield _verdict(disk, directory, damaged)


def _verdict(disk: Disk, directory: str, damaged: list[tuple[int, Item]]) -> Item:
    """Judge as an opening does, and add damage inside sealed segments.

    An opening checks only both ends of a sealed segment and finds such damage when it reads it.
    """
    item: Item = {"kind": "verdict", "ok": False}
    try:
        view = read_latest(disk, directory)
        if view is None:
            raise StorageError(f"there is no log in {directory}")
        item |= {"generation": view.manifest.generation, "start": view.start, "end": view.end}
        if view.cut is not None:
            item |= {"torn_bytes": view.cut.nbytes, "torn_reason": view.cut.reason}
        for number, bad in damaged:
            if number == view.manifest.generation and view.start <= bad["position"] < view.end:
                raise CorruptLog(bad["path"], bad["offset"], bad["verdict"])
        _found, damage = snapshots.usable(disk, view)
        item |= {"ok": True, "snapshot_damage": [str(error) for error in damage]}
    except StorageError as error:
        item["reason"] = str(error)
    return item


def _generation(disk: Disk, directory: str, number: int) -> Iterator[Item]:
    path = posixpath.join(directory, layout.generation_name(number))
    item: Item = {"kind": "generation", "number": number, "path": path}
    log_id = None
    try:
        name = posixpath.join(path, layout.MANIFEST)
        manifest = Manifest.decode(layout.read_file(disk, name), name)
        log_id = manifest.log_id
        item |= {
            "state": "complete",
            "log_id": log_id.hex(),
            "lineage": manifest.lineage.hex(),
            "parent": manifest.parent,
            "cut": manifest.cut,
            "chain": manifest.chain,
            "start": manifest.start,
            "segments": [list(pair) for pair in manifest.segments],
            "owner": dict(manifest.owner),
        }
    except FileNotFoundError:
        item["state"] = "unfinished"
    except StorageError as error:
        item |= {"state": "damaged", "reason": str(error)}
    yield item
    names = disk.list(path)
    for first in layout.segments_in(names):
        yield from _segment(disk, posixpath.join(path, layout.segment_name(first)), first, log_id)
    for position in layout.snapshots_in(names):
        yield _snapshot(disk, path, position, log_id)


def _segment(disk: Disk, path: str, first: int, log_id: bytes | None) -> Iterator[Item]:
    with contextlib.closing(disk.open(path)) as file:
        data = file.read(0, file.length())
    item: Item = {"kind": "segment", "path": path, "first": first, "file_bytes": len(data)}
    try:
        header = decode_segment_header(data)
        item |= {"generation": header.generation, "chain": header.chain, "verdict": "ok"}
        if header.first != first:
            item["verdict"] = f"the segment belongs to position {header.first}"
        if log_id is not None and header.log_id != log_id:
            item["verdict"] = "the segment belongs to another log"
        log_id = log_id or header.log_id
    except (BadFrame, StorageError) as error:
        item["verdict"] = str(error)
    yield item
    if log_id is not None:
        yield from _frames(data, first, log_seed(log_id), path)


def _frames(data: bytes, first: int, seed: int, path: str) -> Iterator[Item]:
    view = memoryview(data)
    at = SEGMENT_HEADER_BYTES
    while at < len(data):
        position = at - SEGMENT_HEADER_BYTES + first
        try:
            kind, length, meta_length, body_crc = decode_header(view, at, position, seed)
            end_at = at + HEADER_BYTES + length
            if end_at > len(data):
                raise BadFrame("the file ends inside a record")
            item: Item = {"kind": "record", "position": position, "offset": at, "type": kind}
            item |= {"meta_bytes": meta_length, "body_bytes": length - meta_length}
            whole = crc32(view[at + HEADER_BYTES + meta_length : end_at]) == body_crc
            item["verdict"] = "ok" if whole else "wrong checksum of a record body"
            if not whole:
                item["path"] = path
            if kind == COMMIT:
                commit = decode_commit(view, at, position, seed)
                item |= {"kind": "commit", "generation": commit.generation, "first": commit.first}
                item |= {"attested": commit.attested, "chain": commit.chain}
        except BadFrame as bad:
            left = len(data) - at
            kind_left = "bad" if data[at:].strip(b"\0") else "reserved"
            item = {"kind": kind_left, "position": position, "offset": at, "bytes": left}
            if kind_left == "bad":
                item |= {"path": path, "verdict": str(bad)}
            yield item
            return
        yield item
        at = end_at


def _snapshot(disk: Disk, path: str, position: int, log_id: bytes | None) -> Item:
    item: Item = {"kind": "snapshot", "position": position, "verdict": "ok"}
    try:
        info = snapshots.read_head(disk, path, position, log_id)
        item |= {"generation": info.generation, "chain": info.chain}
        item["parts"] = {part.name: part.length for part in info.parts}
        for part in info.parts:
            snapshots.read_part(disk, path, part, keep=False)
    except StorageError as error:
        item["verdict"] = str(error)
    return item
