"""Descriptors kept back for the disk: connections may use up the others, never these.

Every connection takes a descriptor, and so does every look at a directory. Without a reserve any
peer could stop a broker by connecting often enough. The operating system has one limit for the
whole process, so this module keeps it below the allowed maximum, and raises it only while something
on the disk is opened, and only if that has failed. It raises it by one descriptor at a time: the
thread of ZeroMQ accepts waiting connections at the same moment, and takes all that the limit
allows. When half of the reserve is lost that way, the broker closes all connections and listens
again.

A consumer opens files for each partition. It counts beforehand, so that a limit that is too low is
one sentence at the start, not an error of some open file later.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..errors import OnceMQError
from ..limits import DESCRIPTORS_SPARE

if sys.platform != "win32":
    import resource

P = ParamSpec("P")
T = TypeVar("T")


class TooFewDescriptors(OnceMQError):
    """This process may open fewer files than it will need. The reason names both numbers."""

    code = "too_few_descriptors"


def descriptors_in_use() -> int:
    return len(os.listdir("/dev/fd")) - 1  # one of them is that of the listing


def allow_descriptors(needed: int, what: str) -> tuple[int, int]:
    """Let this process have `needed` descriptors; return its limit before and now.

    Raises the limit as far as it must, if the allowed maximum permits that. Raises
    TooFewDescriptors, which says `what` needs them.
    """
    if sys.platform == "win32":
        return needed, needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or needed <= soft:
        return soft, soft
    if hard != unlimited and needed > hard:
        raise TooFewDescriptors(
            f"{what} need up to {needed} open files in this process, which may open {hard}",
            hint=f"allow more before it starts: ulimit -n {needed}; or use fewer partitions",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return soft, needed


def keep_descriptors() -> None:
    """Lower the limit of this process, so that the disk has descriptors in reserve.

    Call it once, before a peer can connect.
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
    """Return whether connections have taken half of the reserve.

    The lowest free descriptor tells: the kernel always hands out that one.
    """
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
    """Return how many descriptors lie between the limit and the allowed maximum."""
    if hard == resource.RLIM_INFINITY:
        return DESCRIPTORS_SPARE
    return min(DESCRIPTORS_SPARE, hard - soft)


def with_descriptor(opening: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `opening` (of a file or directory); if no descriptor is left, use one of the reserve."""
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
