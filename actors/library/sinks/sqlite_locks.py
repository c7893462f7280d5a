"""Who writes to a SQLite file just now, as far as this kernel tells.

In WAL mode the writer holds byte 120 of the file `-shm` (sqlite.org/walformat.html). The lock is
looked up in /proc/locks and not with fcntl: closing a descriptor of that file would drop the locks
that SQLite itself holds on it in this process.
"""

from __future__ import annotations

import os

_WRITER_BYTE = 120


def writer_of(path: str) -> int:
    """Return the id of the process that writes to the database in file `path`; 0: not known."""
    try:
        found = os.stat(f"{path}-shm")
        with open("/proc/locks", encoding="ascii", errors="replace") as table:
            lines = table.read().splitlines()
    except OSError:
        return 0
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        # 1: POSIX  ADVISORY  WRITE 1234 08:01:5678 120 120
        words = line.split()
        if len(words) < 8 or words[1] != "POSIX" or words[3] != "WRITE" or words[5] != file:
            continue
        last = words[7]
        if int(words[6]) <= _WRITER_BYTE and (last == "EOF" or int(last) >= _WRITER_BYTE):
            return max(0, int(words[4]))
    return 0
