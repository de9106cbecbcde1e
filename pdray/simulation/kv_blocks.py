"""A simulated worker's KV blocks, by number: which are held, which are kept as prefix cache.

The shipped pool (kvcache/block_pool.py) knows each block; here a request's own blocks are a number,
and what is shared is a piece of a prefix, as large as a trace has names for. So a request costs
some microseconds, however long it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pdray.core.snapshot import KVSpan

PIECE_TOKENS = 512
"""Of one of a workload request's ``prefix_ids``."""


@dataclass(slots=True)
class Holding:
    """What one sequence holds: so many blocks of its own, and pieces that others may hold too."""

    num_own: int = 0
    piece_ids: list[int] = field(default_factory=list)


class BlockNeeds:
    """How many blocks tokens take. A group with a window has, from the start, as many as it will
    come to need."""

    def __init__(self, spans: Sequence[KVSpan], block_size: int) -> None:
        self.block_size = block_size
        self.num_growing = sum(span.window_tokens is None for span in spans)
        self._windows = [span.window_tokens for span in spans if span.window_tokens is not None]

    @property
    def piece_blocks(self) -> int:
        """0: nothing is shared, as blocks do not end where pieces do, or windows hide them."""
        is_whole = PIECE_TOKENS % self.block_size == 0 and not self._windows
        return self.num_growing * (PIECE_TOKENS // self.block_size) if is_whole else 0

    def growing(self, num_tokens: int) -> int:
        return self.num_growing * -(-num_tokens // self.block_size)

    def windowed(self, num_final_tokens: int) -> int:
        most = -(-num_final_tokens // self.block_size)
        return sum(min(most, -(-window // self.block_size) + 1) for window in self._windows)


class KVBlocks:
    """free + cached + held = ``num_blocks``, always."""

    def __init__(self, num_blocks: int, piece_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self.num_evicted = 0
        self._piece_blocks = piece_blocks
        self._holders: dict[int, int] = {}
        # Least recently used first.
        self._cached: dict[int, None] = {}
        self._added: list[int] = []
        self._removed: list[int] = []

    @property
    def num_cached(self) -> int:
        return len(self._cached) * self._piece_blocks

    @property
    def num_available(self) -> int:
        return self.num_free + self.num_cached

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def leading(self, piece_ids: Sequence[int]) -> list[int]:
        """Those that are here, up to the first that is not."""
        found: list[int] = []
        if self._piece_blocks:
            for piece_id in piece_ids:
                if piece_id not in self._holders:
                    break
                found.append(piece_id)
        return found

    def take(
        self, holding: Holding, num_new: int, shared: Sequence[int] = (), *, num_spare: int = 0
    ) -> bool:
        """So many new blocks, and the pieces ``shared``, where ``num_spare`` more are left; or
        nothing."""
        num_woken = sum(piece_id in self._cached for piece_id in shared)
        if num_new + num_woken * self._piece_blocks + num_spare > self.num_available:
            return False
        for piece_id in shared:
            self._holders[piece_id] += 1
            self._cached.pop(piece_id, None)
        self._make_free(num_new)
        self.num_free -= num_new
        holding.num_own += num_new
        holding.piece_ids += shared
        return True

    def take_unowned(self, num_new: int) -> None:
        """For sequences that get them into their holdings later. There must be so many."""
        self._make_free(num_new)
        self.num_free -= num_new

    def name(self, holding: Holding, piece_ids: Sequence[int]) -> None:
        """The holding's own blocks have these pieces now. Those that others have made meanwhile
        stay its own."""
        if not self._piece_blocks:
            return
        for piece_id in piece_ids:
            if piece_id not in self._holders:
                self._holders[piece_id] = 1
                self._added.append(piece_id)
                holding.num_own -= self._piece_blocks
                holding.piece_ids.append(piece_id)
        assert holding.num_own >= 0, "more was named than was held"

    def release(self, holding: Holding) -> None:
        """All of it: the pieces are kept until somebody needs the room, the last ones go first."""
        self.num_free += holding.num_own
        for piece_id in reversed(holding.piece_ids):
            self._holders[piece_id] -= 1
            if self._holders[piece_id] == 0:
                self._cached[piece_id] = None
        holding.num_own = 0
        holding.piece_ids = []

    def take_told(self) -> tuple[list[int], list[int]]:
        """Pieces that came, and those that went, since the last call."""
        told = self._added, self._removed
        self._added, self._removed = [], []
        return told

    def _make_free(self, num_blocks: int) -> None:
        while self.num_free < num_blocks:
            piece_id = next(iter(self._cached))
            del self._cached[piece_id], self._holders[piece_id]
            self._removed.append(piece_id)
            self.num_free += self._piece_blocks
            self.num_evicted += self._piece_blocks

    def check_integrity(self) -> None:
        assert self.num_free >= 0, f"{self.num_free} blocks are free"
        assert self.num_held >= 0, f"{self.num_held} blocks are held"
        idle = {piece_id for piece_id, num in self._holders.items() if num == 0}
        assert idle == self._cached.keys(), "cached is what nobody holds"
