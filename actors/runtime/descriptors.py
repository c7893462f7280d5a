"""Descriptors kept back for the disk: connections may use up the others, never these.

Every connection takes a descriptor, and so does every look at a directory. Whoever can connect
could otherwise stop a broker by connecting often enough. The limit that the operating system knows
is one for the whole process, so it is kept below what is allowed; only while something on the disk
is opened, and only if that failed, it is raised: by one descriptor at a time, because the thread of
ZeroMQ accepts at that very moment whatever waits, and would take all that the limit lets it. When
half of the reserve is gone that way, the broker closes all connections and listens anew.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..limits import DESCRIPTORS_SPARE

if sys.platform != "win32":
    import resource

P = ParamSpec("P")
T = TypeVar("T")


def keep_descriptors() -> None:
    """Lower the limit of this process, so that the disk has some in reserve.

    Call it once, before anybody can connect.
    """
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return  # there is always more
    spare = min(DESCRIPTORS_SPARE, hard // 4)
    if soft > hard - spare:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - spare, hard))


def reserve_used_up() -> bool:
    """Tell whether no descriptor is left but in the reserve, and half of that is taken too."""
    if sys.platform == "win32":
        return False
    try:
        lowest_free = with_descriptor(os.open, os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        return True
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return lowest_free >= soft + _reserve(soft, hard) // 2 > soft


def _reserve(soft: int, hard: int) -> int:
    """Return how many descriptors lie between the limit and what is allowed."""
    if hard == resource.RLIM_INFINITY:
        return DESCRIPTORS_SPARE
    return min(DESCRIPTORS_SPARE, hard - soft)


def with_descriptor(opening: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what opens a file or directory; if no descriptor is left, with one kept in reserve."""
    try:
        return opening(*args, **kwargs)
    except OSError as error:
        if error.errno != errno.EMFILE or sys.platform == "win32":
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for more in range(1, _reserve(soft, hard)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft + more, hard))
            try:
                return opening(*args, **kwargs)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft + _reserve(soft, hard), hard))
        return opening(*args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
