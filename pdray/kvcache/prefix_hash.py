"""Names of prefixes: one hash for every 16 tokens, chained, equal in all processes and machines.

Of the tokens, the model and the tenant's salt alone, never of layout, block size or dtype: so
that workers which differ in those know a prefix by the same name.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

HASH_TOKENS = 16
_HASH_BYTES = 16
_STEP = struct.Struct(f"<{HASH_TOKENS}i")


class PrefixHasher:
    """Hashes of one model's prefixes."""

    def __init__(self, model_digest: str) -> None:
        self._model_digest = model_digest.encode()

    def root(self, salt: str | None) -> bytes:
        """The parent of every first hash. Prompts under unlike salts share no name."""
        tenant = b"shared" if salt is None else b"salt " + salt.encode()
        return _digest(len(tenant).to_bytes(4, "little") + tenant + self._model_digest)

    def chain(self, parent: bytes, token_ids: Sequence[int]) -> list[bytes]:
        """The hash after each whole 16 of ``token_ids``, the tokens that follow ``parent``."""
        hashes: list[bytes] = []
        for start in range(0, len(token_ids) - HASH_TOKENS + 1, HASH_TOKENS):
            parent = _digest(parent + _STEP.pack(*token_ids[start : start + HASH_TOKENS]))
            hashes.append(parent)
        return hashes


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()
