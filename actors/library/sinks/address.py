"""Where a sink is: what the user wrote, and what of it may be shown to people.

    sqlite:///shop.db                       a file, relative to the working directory
    sqlite:////srv/shop.db                  a file, absolute
    postgresql://user@host:5432/database    what libpq takes, parameters included
    env:BILLING_DB                          one of these, in an environment variable

A password stands in `target` only. It is never part of an error, an event or a ledger's path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from ...errors import BadSink

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
_ENV = "env:"


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """A resolved address."""

    kind: str  # SQLITE or POSTGRESQL
    target: str = field(repr=False)  # absolute path, or URL with all secrets
    shown: str
    host: str


def check_sink(text: object) -> str:
    """Return `text` if it can name a sink; the variable behind `env:` is read later.

    Raises BadSink.
    """
    if not isinstance(text, str):
        raise BadSink(f"a sink is a text such as sqlite:///FILE, not {type(text).__name__}")
    if text.startswith(_ENV):
        if not text.removeprefix(_ENV):
            raise BadSink("sink='env:' names no variable")
        return text
    _parse(text, "")
    return text


def resolve_sink(text: str, *, host: str, environ: Mapping[str, str] | None = None) -> SinkAddress:
    """`host` is this machine. Raises BadSink."""
    if text.startswith(_ENV):
        name = text.removeprefix(_ENV)
        value = (os.environ if environ is None else environ).get(name)
        if not value:
            raise BadSink(f"the sink names the environment variable {name}, which is not set")
        text = value
    return _parse(text, host)


def absolute_sink(text: str) -> str:
    """Return `text` so that it names the same file after the process has changed its directory.

    Behind `env:` the variable is read now. Raises BadSink.
    """
    address = resolve_sink(text, host="")
    return f"{SQLITE}:///{quote(address.target)}" if address.kind == SQLITE else address.target


def _parse(text: str, host: str) -> SinkAddress:
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise BadSink("the sink is not an address with ://")
    if scheme == SQLITE:
        return _sqlite(rest, host)
    if scheme in {POSTGRESQL, "postgres"}:
        return _postgresql(rest)
    raise BadSink(f"there is no sink of kind {scheme[:40]!r}")


def _sqlite(rest: str, host: str) -> SinkAddress:
    path = unquote(rest.removeprefix("/"))
    if not rest.startswith("/") or not path or "?" in rest or "\0" in path:
        raise BadSink("a SQLite sink is sqlite:///FILE, without parameters")
    if path == ":memory:":
        raise BadSink("a database in memory keeps nothing: name a file")
    path = os.path.realpath(path)
    return SinkAddress(SQLITE, path, f"sqlite:///{path}", host)


def _postgresql(rest: str) -> SinkAddress:
    try:
        parts = urlsplit(f"{POSTGRESQL}://{rest}")
        port = "" if parts.port is None else f":{parts.port}"
        name = parts.hostname or ""
    except ValueError:  # its text would quote the address, password and all
        raise BadSink("the PostgreSQL address cannot be parsed") from None
    user = f"{unquote(parts.username)}@" if parts.username else ""
    shown = f"{POSTGRESQL}://{user}{name}{port}{parts.path}"
    return SinkAddress(POSTGRESQL, f"{POSTGRESQL}://{rest}", shown, name)
