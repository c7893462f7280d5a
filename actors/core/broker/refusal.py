"""Refusals of the broker: an error for the peer, and the number that a gap asks for."""

from __future__ import annotations

from ...errors import OnceMQError
from ...protocol import Failure


class Refusal(Exception):
    """An error with the number that the sender should send next. Nothing was decided or stored."""

    def __init__(self, error: OnceMQError, expected: int) -> None:
        self.error = error
        self.expected = expected
        super().__init__(str(error))


def failure(request: int, error: OnceMQError | Refusal) -> Failure:
    reason = error.error if isinstance(error, Refusal) else error
    expected = error.expected if isinstance(error, Refusal) else -1
    return Failure(request, reason.code, reason.reason, reason.hint, expected)
