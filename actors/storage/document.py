"""Small files that are read as a whole: manifest, snapshot head, log start, owner of a lock.

One line `oncemq KIND VERSION CRC`, then one line of JSON with sorted keys. People can read them.
The CRC over kind, version and JSON tells a whole document from a torn or damaged one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from ..errors import CorruptLog, UnsupportedFormat
from .framing import FORMAT_VERSION, LOG_ID_BYTES

# A damaged length must not make a reader allocate the whole disk. The largest document is a
# snapshot head, with one short line for each part.
DOCUMENT_BYTES_MAX = 64 * 1024 * 1024

Owner = Mapping[str, str | int]  # pid, start time, boot id, host: what proves an owner dead


def encode(kind: str, content: Mapping[str, Any]) -> bytes:
    line = json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    head = f"oncemq {kind} {FORMAT_VERSION}".encode()
    return head + b" %08x\n" % crc32(line, crc32(head)) + line


def decode(kind: str, data: bytes, path: str) -> dict[str, Any]:
    """Raises CorruptLog, UnsupportedFormat."""
    head, _, line = data.partition(b"\n")
    words = head.split(b" ")
    if len(words) != 4 or words[:2] != [b"oncemq", kind.encode()] or not words[2].isdigit():
        raise CorruptLog(path, 0, f"this is not a {kind} file")
    # The version is judged before the checksum: a later format may compute it in another way, and
    # "upgrade" is a better answer than "damaged". Nine digits are damage, not a version.
    if len(words[2]) < 9 and int(words[2]) > FORMAT_VERSION:
        raise UnsupportedFormat(
            f"{path} has format {int(words[2])}; this OnceMQ reads {FORMAT_VERSION}"
        )
    if words[3] != b"%08x" % crc32(line, crc32(b" ".join(words[:3]))):
        raise CorruptLog(path, 0, f"wrong checksum of the {kind}")
    content = json.loads(line)
    if not isinstance(content, dict):
        raise CorruptLog(path, 0, f"the {kind} is not a table")
    return content


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a generation is made of. Written once, before the generation's first own frame.

    Invariant: it attests everything below `cut`.
    """

    log_id: bytes  # random; the same in all generations of a log
    lineage: bytes  # log_id of the log that this one descends from; equal to log_id today
    generation: int  # must agree with the name of the directory
    parent: int  # generation that was taken over; 0: none
    cut: int  # position at which this generation continues the log
    chain: int  # chain before `cut`
    start: int  # position at which the log starts: what lies below was discarded
    segments: Sequence[tuple[int, int]]  # (first position, bytes up to the next one or the cut)
    owner: Owner = field(default_factory=dict)  # the writer, for people and for `--takeover`

    def encode(self) -> bytes:
        return encode(
            "manifest",
            {
                "log_id": self.log_id.hex(),
                "lineage": self.lineage.hex(),
                "generation": self.generation,
                "parent": self.parent,
                "cut": self.cut,
                "chain": self.chain,
                "start": self.start,
                "segments": [list(pair) for pair in self.segments],
                "owner": dict(self.owner),
            },
        )

    @classmethod
    def decode(cls, data: bytes, path: str) -> Manifest:
        """Raises CorruptLog, UnsupportedFormat."""
        content = decode("manifest", data, path)
        try:
            manifest = cls(
                log_id=bytes.fromhex(content["log_id"]),
                lineage=bytes.fromhex(content["lineage"]),
                generation=int(content["generation"]),
                parent=int(content["parent"]),
                cut=int(content["cut"]),
                chain=int(content["chain"]),
                start=int(content["start"]),
                segments=[(int(first), int(length)) for first, length in content["segments"]],
                owner=dict(content["owner"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptLog(path, 0, f"the manifest lacks a field: {error!r}") from error
        if len(manifest.log_id) != LOG_ID_BYTES:
            raise CorruptLog(path, 0, "the manifest has an impossible log_id")
        return manifest


@dataclass(frozen=True, slots=True)
class Part:
    """One immutable part of a snapshot."""

    name: str  # given by the core
    file: str  # name in the generation's directory; several heads may share one file
    length: int  # in bytes
    crc: int  # crc32 of the whole file


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot: the state after all records below `position`."""

    log_id: bytes
    generation: int  # the one that wrote it; a carried snapshot keeps it
    position: int  # a group ends here, and all below was synced before the snapshot was written
    chain: int  # chain before `position`
    parts: Sequence[Part]

    def encode(self) -> bytes:
        return encode(
            "snapshot",
            {
                "log_id": self.log_id.hex(),
                "generation": self.generation,
                "position": self.position,
                "chain": self.chain,
                "parts": [[p.name, p.file, p.length, p.crc] for p in self.parts],
            },
        )

    @classmethod
    def decode(cls, data: bytes, path: str) -> SnapshotInfo:
        """Raises CorruptLog, UnsupportedFormat."""
        content = decode("snapshot", data, path)
        try:
            parts = [Part(str(n), str(f), int(size), int(c)) for n, f, size, c in content["parts"]]
            return cls(
                bytes.fromhex(content["log_id"]),
                int(content["generation"]),
                int(content["position"]),
                int(content["chain"]),
                parts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptLog(path, 0, f"the snapshot lacks a field: {error!r}") from error
