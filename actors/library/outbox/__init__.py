"""The outbox: messages that are sent if, and only if, the user's own transaction commits."""

from .send import create, send

__all__ = ["create", "send"]
