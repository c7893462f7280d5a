"""Why a PostgreSQL server, or libpq, refuses a connection: for good, or because of an outage."""

from __future__ import annotations

import re

# libpq gives no SQLSTATE for a refused connection, only the text. What is not found here, as in
# another language of the server, is retried as an outage.
_FOR_GOOD = re.compile(
    r"""
    database\ ".*"\ does\ not\ exist | role\ ".*"\ does\ not\ exist
    | is\ not\ permitted\ to\ log\ in | no\ such\ (?:database|user)
    | (?:password|peer|ident|certificate|gssapi|sspi)\ authentication\ failed
    | no\ password\ supplied | no\ pg_hba\.conf\ entry | pg_hba\.conf\ rejects
    | permission\ denied\ for\ database | unrecognized\ configuration\ parameter
    | invalid\ (?:\w+\ )+value | definition\ of\ service | does\ not\ support\ SSL
    | certificate\ (?:file|verify)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_for_good(error: Exception) -> bool:
    """Return whether no waiting mends what made a connection fail."""
    return _FOR_GOOD.search(str(error)) is not None
