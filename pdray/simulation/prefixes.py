"""Names of a workload's shared prefixes, as frontends and workers would have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pdray.core.prefix_report import PREFIX_NAME_BYTES, KVTier, NameChanges, PrefixReport

from .kv_blocks import PIECE_TOKENS

NAMED_TOKENS = 16
_NAMES_PER_PIECE = PIECE_TOKENS // NAMED_TOKENS
# Odd, so that no two names are the same; large, so that they spread as hashes do: by their
# highest bits, which are last where a little-endian machine looks names up.
_SPREAD = 0x9E3779B97F4A7C15
_MASK = 2 ** (8 * PREFIX_NAME_BYTES) - 1


def prefix_names(piece_ids: Sequence[int]) -> bytes:
    """As a PlacementAsk has them: one for every 16 tokens of the pieces."""
    return b"".join(_names(piece_ids, 1))


def prefix_report(
    number: int, added: Sequence[int], removed: Sequence[int], block_size: int
) -> PrefixReport:
    """Of pieces that came into a worker's cache, and went: one name for every block."""
    step = block_size // NAMED_TOKENS
    changes = NameChanges(
        tier=KVTier.DEVICE,
        added=b"".join(_names(added, step)),
        removed=b"".join(_names(removed, step)),
    )
    return PrefixReport(number=number, changes=(changes,))


def _names(piece_ids: Iterable[int], step: int) -> Iterator[bytes]:
    for piece_id in piece_ids:
        first = piece_id * _NAMES_PER_PIECE
        for number in range(first + step, first + _NAMES_PER_PIECE + 1, step):
            yield (number * _SPREAD & _MASK).to_bytes(PREFIX_NAME_BYTES, "little")
