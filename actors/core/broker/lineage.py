"""Proof that a log was restored: what makes its original end.

A restored log has a lineage of its own and higher epochs. Its clients carry the highest epoch they have met,
but a claim alone must not end a broker. So the restored broker gives them a proof: a keyed hash of lineage
and epoch under the secret of the log, which every copy of the log has and no client learns. The original
makes the same hash and knows that a copy of it has become its successor.
"""

from __future__ import annotations

import hashlib
import hmac

_PROOF_BYTES = 16


def lineage_proof(secret: bytes, lineage: bytes, epoch: int) -> bytes:
    text = lineage + epoch.to_bytes(8, "little")
    return hashlib.blake2b(
        text, key=secret, digest_size=_PROOF_BYTES, person=b"oncemq.lineage"
    ).digest()


def is_proof(proof: bytes, secret: bytes, lineage: bytes, epoch: int) -> bool:
    return hmac.compare_digest(proof, lineage_proof(secret, lineage, epoch))
