"""Rows of a file as messages: ids, keys and checks, and the producer name of a file."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...errors import BadInput, OnceMQError
from ...ids import compound_id
from ..producing.acks import Verdicts
from ..producing.parcel import Parcel, checked_many, checked_message
from .sources import STDIN, Rows


@dataclass(frozen=True, slots=True)
class FileJob:
    """A file to send, and how."""

    topic: str
    path: str
    format_name: str = "lines"
    id_fields: tuple[str, ...] = ()
    key_field: str | None = None
    time_field: str | None = None


def default_name(topic: str, path: str) -> str:
    """Return the producer name of a file: the same for the same topic and absolute path.

    Standard input gets a fresh name each time, because it cannot be read again.
    """
    if path == STDIN:
        return f"stdin-{secrets.token_hex(8)}"
    absolute = os.path.abspath(path)
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in os.path.basename(absolute))
    digest = hashlib.sha256(f"{topic}\0{absolute}".encode("utf-8", "surrogateescape"))
    readable = stem.encode("ascii", "replace").decode().replace("?", "-")[:64]
    return f"{readable}-{digest.hexdigest()[:12]}"


def parcel_of(job: FileJob, rows: Rows) -> Parcel:
    """Return the rows as a checked parcel; the first bad row ends `rows` before itself."""
    try:
        return _checked(job, rows.values, rows.numbers)
    except OnceMQError:
        good = next(
            index
            for index, value in enumerate(rows.values)
            if (bad := _bad(job, value, rows.numbers[index])) is not None
        )
    del rows.values[good:], rows.numbers[good:]
    rows.error, rows.ended = bad, True
    return _checked(job, rows.values, rows.numbers)


def _checked(job: FileJob, values: list[Any], numbers: list[int]) -> Parcel:
    parcel = Parcel(job.topic, Verdicts(job.topic), explicit=bool(job.id_fields), born_ms=0)
    if values:
        ids = keys = None
        if job.id_fields:
            ids = [_id(job, row, number) for row, number in zip(values, numbers, strict=True)]
        if job.key_field is not None:
            key = job.key_field
            keys = [_text(row, key, n) for row, n in zip(values, numbers, strict=True)]
        times = None
        if job.time_field is not None:
            name = job.time_field
            times = [_time(row, name, n) for row, n in zip(values, numbers, strict=True)]
        checked_many(parcel, values, ids, keys, created_at=times)
    return parcel


def _bad(job: FileJob, value: Any, number: int) -> OnceMQError | None:
    try:
        key = None if job.key_field is None else _text(value, job.key_field, number)
        id_text = _id(job, value, number) if job.id_fields else None
        time = None if job.time_field is None else _time(value, job.time_field, number)
        checked_message(value, id=id_text, key=key, headers=None, created_at=time)
    except BadInput as error:
        return error
    except OnceMQError as error:
        return BadInput(f"line {number}: {error.reason}")
    return None


def _id(job: FileJob, row: Any, number: int) -> str:
    return compound_id([_text(row, name, number) for name in job.id_fields])


def _text(row: Any, name: str, number: int) -> str:
    """Return a field that makes an id or a key: text, or a whole number in decimal."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    what = "is missing" if value is None else f"is {type(value).__name__}, not text"
    raise BadInput(f"line {number}: field {name!r} {what}")


def _time(row: Any, name: str, number: int) -> datetime | int:
    """Return the field that tells when a row was created: ISO 8601 with an offset, or milliseconds."""
    value = row.get(name)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise BadInput(f"line {number}: field {name!r} is no time: {value!r}") from None
        if value.tzinfo is None:
            raise BadInput(
                f"line {number}: field {name!r} has no offset from UTC",
                hint="write times like 2026-01-31T12:00:00+01:00 or 2026-01-31T11:00:00Z",
            )
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    what = "is missing" if value is None else f"is {type(value).__name__}, not a time"
    raise BadInput(f"line {number}: field {name!r} {what}")
