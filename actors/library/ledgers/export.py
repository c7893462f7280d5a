"""A ledger as one portable file: written beside a working consumer, and checked when it is read.

The file holds what a snapshot of the ledger holds (offsets, state, processed set, waiting outputs)
as of one commit, which is durable before this file is written. Layout: MAGIC, then sections of a
head (lengths of name and data, crc32 of both) and their bytes. The first section names the ledger;
the last one is a digest of everything before it, so that a file that ends early or was changed
anywhere is refused.
"""

from __future__ import annotations

import hashlib
import posixpath
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

from ...codec import wire
from ...core.consumer.ledger import Ledger
from ...core.consumer.processed import IDS_PART, OLD_IDS_PART
from ...errors import BadInput, CorruptLog, UnsupportedFormat
from ...shells.ledger.files import ledger_directory
from ...storage import layout
from ...storage.creation import hold_lock, identity
from ...storage.disk import Disk, File
from .reader import NoLedger, read_ledger

MAGIC = b"OMQLEDG1"
FORMAT = 1
_SECTION = struct.Struct("<HQI")  # bytes of the name, of the data, crc32 of name and data
_NAME_BYTES_MAX = 256
_ABOUT, _END = "about", "end"
_IDS_BYTES = 4 * 1024 * 1024  # of fingerprints in one section
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True)
class About:
    """The identity of the ledger in a file, and its progress."""

    format: int
    group: str
    topic: str
    partition: int
    ledger_id: str  # hexadecimal; the fingerprints of explicit ids are keyed by it
    topic_id: str
    log_id: str
    next_offset: int
    commit_no: int
    epoch: int
    state_keys: int
    state_bytes: int
    explicit_ids: int
    outputs_unacked: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_ledger(disk: Disk, directory: str, target: str) -> About:
    """Write the ledger in `directory` to the new file `target`; return what was written.

    The consumer may be at work; what it commits meanwhile is not in the file. Raises NoLedger,
    CorruptLog, BadInput (the file is there), OSError.
    """
    found = identity(disk, directory)
    if found is None:
        raise NoLedger(f"there is no ledger in {directory}")
    ledger = read_ledger(disk, directory)
    about = _about(ledger, found.log_id, directory)
    if disk.exists(target):
        raise BadInput(f"{target} exists already", hint="name another file")
    unfinished = target + _UNFINISHED
    layout.remove(disk, unfinished)  # left by an export that was killed
    file = disk.create(unfinished)
    try:
        _write(file, about, ledger)
        file.sync()
    finally:
        file.close()
    disk.rename(unfinished, target)
    disk.sync_directory(posixpath.dirname(target) or ".")
    return about


def _about(ledger: Ledger, ledger_id: bytes, directory: str) -> About:
    started = ledger.started
    if started is None:
        raise NoLedger(f"the ledger in {directory} is still empty")
    return About(
        FORMAT,
        started.group,
        started.topic,
        started.partition,
        ledger_id.hex(),
        started.topic_id.hex(),
        started.log_id.hex(),
        ledger.next_offset,
        ledger.commit_no,
        ledger.epoch,
        len(ledger.state),
        ledger.state_bytes,
        ledger.processed.explicit_count,
        ledger.unacked_count,
    )


def _write(file: File, about: About, ledger: Ledger) -> None:
    at = 0
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        nonlocal at
        file.write(data, at)
        digest.update(data)
        at += len(data)

    def section(name: str, data: bytes) -> None:
        tag = name.encode()
        put(_SECTION.pack(len(tag), len(data), crc32(data, crc32(tag))) + tag)
        put(data)

    put(MAGIC)
    section(_ABOUT, wire.pack_plain(about.as_dict()))
    # A snapshot only names the files in which most ids lie; this file must hold them all.
    for name, part in sorted(ledger.snapshot().parts.items()):
        if name != IDS_PART:
            section(name, wire.pack_plain(part))
    for number, ids in enumerate(_joined(ledger.processed.all())):
        section(f"{OLD_IDS_PART}{ledger.commit_no:020d}-{number:06d}", wire.pack_plain(ids))
    section(_END, digest.digest())


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about _IDS_BYTES: each becomes a file where it is imported."""
    some: list[bytes] = []
    size = 0
    for piece in pieces:
        some.append(piece)
        size += len(piece)
        if size >= _IDS_BYTES:
            yield b"".join(some)
            some, size = [], 0
    if some:
        yield b"".join(some)


def check_export(disk: Disk, path: str) -> tuple[About, Ledger]:
    """Read a file that `export_ledger` wrote, all of it, and return what it holds.

    Raises CorruptLog with the place of the damage, UnsupportedFormat, OSError.
    """
    return read_export(disk, path)[:2]


def read_export(disk: Disk, path: str) -> tuple[About, Ledger, dict[str, bytes]]:
    """As `check_export`, and the undecoded parts of the snapshot."""
    parts: dict[str, Any] = {}
    encoded: dict[str, bytes] = {}
    for name, data, offset in _sections(disk, path):
        encoded[name] = data
        try:
            parts[name] = wire.unpack_plain(data)
        except ValueError as error:
            raise CorruptLog(path, offset, f"section {name!r}: {error}") from None
        if name == _ABOUT and parts[name].get("format") != FORMAT:
            raise UnsupportedFormat(f"{path} has format {parts[name].get('format')}, not {FORMAT}")
    try:
        about = About(**parts.pop(_ABOUT))
        del encoded[_ABOUT]
        ledger = Ledger()
        ledger.restore(parts)
    except (KeyError, TypeError, AssertionError) as error:
        raise CorruptLog(path, 0, f"its parts are not those of a ledger: {error!r}") from None
    if about != _about(ledger, bytes.fromhex(about.ledger_id), path):
        raise CorruptLog(path, len(MAGIC), "its header does not match its content")
    return about, ledger, encoded


def _sections(disk: Disk, path: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, data and place of every section but the last, the digest, which it checks."""
    file = disk.open(path)
    try:
        length = file.length()
        if file.read(0, len(MAGIC)) != MAGIC:
            raise CorruptLog(path, 0, "not an exported ledger")
        digest = hashlib.sha256(MAGIC)
        at = len(MAGIC)
        while True:
            head = file.read(at, _SECTION.size)
            if len(head) < _SECTION.size:
                raise CorruptLog(path, at, "the file ends early")
            name_length, data_length, crc = _SECTION.unpack(head)
            end = at + len(head) + name_length + data_length
            if name_length > _NAME_BYTES_MAX or end > length:
                raise CorruptLog(path, at, "a section is longer than the file")
            body = file.read(at + len(head), name_length + data_length)
            if crc32(body) != crc:
                raise CorruptLog(path, at, "a section has a wrong checksum")
            name, data = body[:name_length].decode(errors="replace"), body[name_length:]
            if name == _END:
                if data != digest.digest() or end != length:
                    raise CorruptLog(path, at, "the digest does not match the file")
                return
            yield name, data, at
            digest.update(head + body)
            at = end
    finally:
        file.close()


def is_owned(disk: Disk, directory: str) -> bool:
    """If so, later commits of the owner are not in the export."""
    lock = hold_lock(disk, directory)
    if lock is not None:
        lock.release()
    return lock is None


def find_directory(disk: Disk, state: str, place: str) -> str:
    """`place` is a directory, or GROUP/TOPIC/PARTITION."""
    if disk.exists(place) and layout.generations(disk, place):
        return place
    parts = place.split("/")
    if len(parts) == 3 and parts[2].isdecimal():
        return ledger_directory(state, parts[0], parts[1], int(parts[2]))
    raise NoLedger(f"{place!r} is neither a ledger's directory nor GROUP/TOPIC/PARTITION")
