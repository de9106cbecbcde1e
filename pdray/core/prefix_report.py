"""What a worker tells of the prefixes whose KV it has: the names that came and went."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass

PREFIX_NAME_BYTES = 8
"""Of a prefix's hash. Two prefixes of one name cost a vain look into a prefix cache, where names
are longer."""


def name_numbers(names: bytes) -> memoryview[int]:
    """Names that lie one behind the other, as numbers: faster to look up, and the same only on
    machines of one byte order."""
    return memoryview(names).cast("Q")


def name_number(name: bytes) -> int:
    return int.from_bytes(name, sys.byteorder)


class KVTier(enum.IntFlag):
    """Where a block is; a name may be in all of them."""

    DEVICE = 1
    HOST = 2
    DISK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NameChanges:
    """Names in one tier, one behind the other: of every full block, the hash of all tokens up to
    its end, cut to PREFIX_NAME_BYTES."""

    tier: KVTier
    added: bytes
    removed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixReport:
    """The ``number``-th since the first, which ``is_start``: what was told before that is void.
    None of them says all; each says what is new since the one before."""

    number: int
    changes: tuple[NameChanges, ...]

    @property
    def is_start(self) -> bool:
        return self.number == 0
