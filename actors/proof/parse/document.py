"""Manifests and snapshot heads: one line `oncemq KIND VERSION CRC`, one line of JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from zlib import crc32

from ...errors import CorruptLog, UnsupportedFormat
from .files import Files
from .frames import VERSION

_BYTES_MAX = 64 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


class Manifest(NamedTuple):
    """What a generation continues and is made of."""

    log_id: bytes
    lineage: bytes
    generation: int
    parent: int
    cut: int
    chain: int
    start: int
    segments: list[tuple[int, int]]


class Part(NamedTuple):
    """A part of a snapshot."""

    name: str
    file: str
    length: int
    crc: int


class SnapshotHead(NamedTuple):
    """What a snapshot is made of and the place it stands for."""

    log_id: bytes
    generation: int
    position: int
    chain: int
    parts: list[Part]


def read_whole(files: Files, path: str) -> bytes:
    """Raises FileNotFoundError, CorruptLog."""
    with contextlib.closing(files.open(path)) as file:
        length = file.length()
        if length > _BYTES_MAX:
            raise CorruptLog(path, 0, f"impossible length {length}")
        return file.read(0, length)


def document(files: Files, path: str, kind: str) -> dict[str, Any]:
    """Raises FileNotFoundError, CorruptLog, UnsupportedFormat."""
    data = read_whole(files, path)
    newline = data.find(b"\n")
    words = data[: max(newline, 0)].split(b" ")
    if len(words) != 4 or words[0] != b"oncemq" or words[1] != kind.encode():
        raise CorruptLog(path, 0, f"this is no {kind}")
    version = int(words[2]) if words[2].isdigit() and len(words[2]) < 9 else 0
    if version > VERSION:
        raise UnsupportedFormat(f"{path} has format {version}; this OnceMQ reads {VERSION}")
    covered = b" ".join(words[:3]) + data[newline + 1 :]
    if version != VERSION or words[3] != b"%08x" % crc32(covered):
        raise CorruptLog(path, 0, f"wrong checksum of the {kind}")
    content = json.loads(data[newline + 1 :])
    if not isinstance(content, dict):
        raise CorruptLog(path, 0, f"the {kind} is not a table")
    return content


def manifest_or_none(files: Files, path: str) -> Manifest | None:
    """Raises CorruptLog."""
    try:
        content = document(files, path, "manifest")
    except FileNotFoundError:
        return None
    try:
        return Manifest(
            bytes.fromhex(content["log_id"]),
            bytes.fromhex(content["lineage"]),
            int(content["generation"]),
            int(content["parent"]),
            int(content["cut"]),
            int(content["chain"]),
            int(content["start"]),
            [(int(first), int(length)) for first, length in content["segments"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptLog(path, 0, f"the manifest lacks a field: {error!r}") from error


def snapshot_head(files: Files, path: str) -> SnapshotHead:
    """Raises FileNotFoundError, CorruptLog."""
    content = document(files, path, "snapshot")
    try:
        return SnapshotHead(
            bytes.fromhex(content["log_id"]),
            int(content["generation"]),
            int(content["position"]),
            int(content["chain"]),
            [Part(str(n), str(f), int(size), int(crc)) for n, f, size, crc in content["parts"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptLog(path, 0, f"the snapshot lacks a field: {error!r}") from error


def start_position(files: Files, path: str) -> int:
    """Return where the START file says that the log starts; 0 without one. Raises CorruptLog."""
    try:
        start = document(files, path, "start").get("start")
    except FileNotFoundError:
        return 0
    if not isinstance(start, int):
        raise CorruptLog(path, 0, "no start position")
    return start


def check_part(files: Files, directory: str, part: Part) -> None:
    """Raises CorruptLog, also where the part is missing."""
    try:
        for _ in _pieces(files, directory, part):
            continue
    except FileNotFoundError:
        raise CorruptLog(f"{directory}/{part.file}", 0, "a part is missing") from None


def part_bytes(files: Files, directory: str, part: Part) -> bytes:
    """Raises CorruptLog, FileNotFoundError."""
    return b"".join(_pieces(files, directory, part))


def _pieces(files: Files, directory: str, part: Part) -> Iterator[bytes]:
    path = f"{directory}/{part.file}"
    crc = 0
    with contextlib.closing(files.open(path)) as file:
        length = file.length()
        if length != part.length:
            raise CorruptLog(path, length, f"a part of {part.length} bytes was promised")
        for at in range(0, length, _CHUNK_BYTES):
            piece = file.read(at, min(_CHUNK_BYTES, length - at))
            crc = crc32(piece, crc)
            yield piece
    if crc != part.crc:
        raise CorruptLog(path, 0, "wrong checksum of a part")
