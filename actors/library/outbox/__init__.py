"""The outbox: a message is sent if, and only if, the user's transaction commits.

Here: `outbox.send` for the user's transaction, the SQL table, and the relay that sends its rows.
"Outbox" always means this table. May import `producing` for encoding.
"""

from .send import create, send

__all__ = ["create", "send"]
