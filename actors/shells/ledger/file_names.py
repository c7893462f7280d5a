"""Names of users as names of files."""

from __future__ import annotations

import hashlib

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME_BYTES = 200  # longer names end in a digest: file names have 255 bytes at most


def file_name(name: str) -> str:
    """Return a file name for a group or topic. Different names never give the same file name."""
    encoded = "".join(chr(b) if b in _PLAIN else f"%{b:02x}" for b in name.encode())
    if len(encoded) <= _NAME_BYTES:
        return encoded
    # "%%" stands in no encoded name, so a shortened one is never taken for a whole one.
    return f"{encoded[:100]}%%{hashlib.sha256(name.encode()).hexdigest()}"
