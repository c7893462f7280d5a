"""Descriptors kept back for the disk: connections may use up the others, never these.

Every connection takes a descriptor, and so does every look at a directory. Whoever can connect
could otherwise stop a broker by connecting often enough. The limit that the operating system knows
is one for the whole process, so it is kept below what is allowed; only while something on the disk
is opened, and only if that failed, it is raised.
"""

from __future__ import annotations

import errno
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


def with_descriptor(opening: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what opens a file or directory; if no descriptor is left, with one kept in reserve."""
    try:
        return opening(*args, **kwargs)
    except OSError as error:
        if error.errno != errno.EMFILE or sys.platform == "win32":
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = soft + DESCRIPTORS_SPARE
    if hard != resource.RLIM_INFINITY:
        more = min(more, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    try:
        return opening(*args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
