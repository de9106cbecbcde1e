"""A sequence's blocks: where they come from, how its tables move on, where they go.

Pure: it moves block ids between the pool, the prefix cache and sequences, never bytes. Not
thread-safe: the engine holds its lock around every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pdray.core.handoff import BlockRun
from pdray.engine.block_needs import (
    first_kept_block,
    first_needed_block,
    missing_blocks,
    num_blocks_of,
    peak_blocks,
)
from pdray.engine.prefix_cache import PrefixCache, PrefixHit
from pdray.engine.sequence import BlockTable, Sequence, SequenceState
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_hash import HASH_TOKENS


@dataclass(frozen=True, slots=True)
class Start:
    """A way to begin: with what the prefix cache has, or without, and so many more blocks."""

    hit: PrefixHit | None
    num_missing: int


TurnEnd = Callable[[tuple[bytes, ...]], None]
"""Told of the hashes of what was computed for a request of a session, which has just given its
blocks back."""


class SequenceBlocks:
    """``max_chunk`` is the most tokens of one sequence that a step computes."""

    def __init__(
        self,
        *,
        groups: tuple[KVGroup, ...],
        block_size: int,
        pool: BlockPool,
        prefix_cache: PrefixCache,
        max_chunk: int,
    ) -> None:
        self._groups = groups
        self._block_size = block_size
        self._pool = pool
        self._prefix_cache = prefix_cache
        self._max_chunk = max_chunk
        self.on_turn_end: TurnEnd | None = None

    @property
    def num_groups(self) -> int:
        return len(self._groups)

    # Before it runs

    def find_start(self, seq: Sequence, num_tokens: int, *, num_spare: int) -> Start | None:
        """The best way to begin that the pool has the blocks for, enough to compute
        ``num_tokens`` without asking it again, and ``num_spare`` more. Changes nothing."""
        self.make_tables(seq)
        for start in self._possible_starts(seq, num_tokens):
            found = start.hit.block_ids if start.hit else ()
            num_taken = start.num_missing + self._pool.count_cached(found)
            if num_taken == 0 or num_taken + num_spare <= self._pool.num_available_blocks:
                return start
        return None

    def _possible_starts(self, seq: Sequence, num_tokens: int) -> Iterator[Start]:
        if not seq.block_ids:
            hit = self._prefix_cache.find(seq)
            if hit.num_computed_tokens:
                yield Start(hit, self._missing(hit.tables, hit.num_computed_tokens, num_tokens))
        # Without a hit it can do with less: a found window's blocks are not its own, so later
        # tokens can't have their place. What fits an empty pool must fit a full cache.
        missing = self._missing(seq.block_tables, seq.num_computed_tokens, num_tokens)
        yield Start(None, max(0, missing - len(seq.stock)))

    def take_start(self, seq: Sequence, num_tokens: int, start: Start) -> None:
        if start.hit is not None:
            self._prefix_cache.take(seq, start.hit)
        stock = self._pool.allocate(start.num_missing)
        assert stock is not None, f"the pool lacks blocks that it had for {seq.request_id}"
        # Stock is used from its end: ascending ids make runs that a reader can join.
        seq.stock += reversed(stock)
        seq.allocated_tokens = max(seq.allocated_tokens, num_tokens)

    def reserve(
        self, seq: Sequence, num_margin_tokens: int, may_arrive_longer: bool = False
    ) -> bool:
        """Takes all blocks for the sequence's tokens, whose KV is computed elsewhere and will be
        written here, and for ``num_margin_tokens`` more to be computed here; or none. Those that
        are here already are shared: they need not be written. Of one that ``may_arrive_longer``
        all of it may be written: what a read fills is not used twice."""
        target = seq.num_tokens + num_margin_tokens
        arriving = target if may_arrive_longer else seq.num_tokens
        for tables in self._possible_tables(seq):
            shared_ids = [block_id for table in tables for block_id in table.block_ids]
            num_new = self._missing_to_arrive(tables, arriving, target)
            num_taken = num_new + self._pool.count_cached(shared_ids)
            if num_taken > self._pool.num_available_blocks:
                continue
            self._pool.retain(shared_ids)
            seq.stock = (self._pool.allocate(num_new) or [])[::-1]
            seq.block_tables, seq.allocated_tokens = tables, target
            self._extend_tables(seq, arriving)
            return True
        return False

    def fit_arrived(self, seq: Sequence) -> None:
        """Into its stock goes what its tables have besides the blocks that its computed tokens
        need: nobody has written the rest, or it fell out of a window meanwhile."""
        end_block = num_blocks_of(seq.num_computed_tokens, self._block_size)
        for group, table in zip(self._groups, seq.block_tables, strict=True):
            num_kept = end_block - table.first_block
            seq.stock += reversed(table.block_ids[num_kept:])
            del table.block_ids[num_kept:]
            first = first_needed_block(group, seq.num_computed_tokens, self._block_size)
            shared, own = table.drop_before(first)
            self._pool.release(shared)
            seq.stock += own

    def _possible_tables(self, seq: Sequence) -> Iterator[list[BlockTable]]:
        """With what is here of the blocks that its next token needs, and without any of it: as
        little as that can do with less (see ``_possible_starts``)."""
        firsts = [
            first_needed_block(group, seq.num_tokens, self._block_size) for group in self._groups
        ]
        found = self._prefix_cache.find_leading(seq, firsts)
        if any(found):
            yield [
                BlockTable(first, block_ids, num_shared=len(block_ids))
                for first, block_ids in zip(firsts, found, strict=True)
            ]
        yield [BlockTable(first) for first in firsts]

    def _missing_to_arrive(self, tables: Iterable[BlockTable], arriving: int, target: int) -> int:
        """Blocks that tables of shared ones lack for ``arriving`` tokens at once, and for
        computing those up to ``target``."""
        end_block = num_blocks_of(arriving, self._block_size)
        return sum(
            max(
                end_block - table.end_block,
                peak_blocks(
                    group,
                    first_block=table.first_own_block,
                    computed=arriving,
                    target=target,
                    max_chunk=1,
                    block_size=self._block_size,
                ),
            )
            for group, table in zip(self._groups, tables, strict=True)
        )

    def make_tables(self, seq: Sequence) -> None:
        if not seq.block_tables:
            seq.block_tables = [BlockTable() for _ in self._groups]

    def name_arrived(self, seq: Sequence) -> None:
        """What it has of computed KV before it runs here, others may find. Where it arrives in the
        middle of its output, its windows move on."""
        self._prefix_cache.name_new(seq, 0)
        if seq.num_computed_tokens <= seq.num_prefill_tokens:
            self._prefix_cache.name_windows(seq)

    def runs(self, seq: Sequence, ready_tokens: int) -> tuple[BlockRun, ...]:
        """Blocks of a prompt that a peer may read once ``ready_tokens`` of it are computed."""
        return self._runs(seq, ready_tokens, seq.num_prefill_tokens)

    def decode_runs(self, seq: Sequence) -> tuple[int, tuple[BlockRun, ...]]:
        """Blocks of one that decodes, and how many tokens' KV they have: only full ones, as it may
        write into the last, unless it is paused. None of one that has lost its blocks."""
        if not seq.is_decoding:
            return 0, ()
        ready_tokens = computed = seq.num_computed_tokens
        if seq.state is not SequenceState.PAUSED:
            ready_tokens = computed // self._block_size * self._block_size
        return ready_tokens, self._runs(seq, ready_tokens, computed)

    def _runs(self, seq: Sequence, ready_tokens: int, num_tokens: int) -> tuple[BlockRun, ...]:
        end = ready_tokens // self._block_size
        if ready_tokens == num_tokens:
            end = num_blocks_of(num_tokens, self._block_size)
        runs: list[BlockRun] = []
        for group, table in zip(self._groups, seq.block_tables, strict=True):
            first = first_needed_block(group, num_tokens, self._block_size)
            if end > first:
                wanted = slice(first - table.first_block, end - table.first_block)
                ids = tuple(table.block_ids[wanted])
                runs.append(
                    BlockRun(
                        group_id=group.group_id,
                        first_block=first,
                        block_ids=ids,
                        is_first_whole=first >= table.first_whole_block,
                    )
                )
        return tuple(runs)

    # While it runs

    def begin(self, seq: Sequence) -> None:
        """Its first chunk is about to run. While it waited, others with the same prefix may have
        computed more of it."""
        self._prefix_cache.look_again(seq)
        self._release_surplus(seq)

    def grow(self, seq: Sequence, num_unread: int = 0) -> bool:
        """Blocks for all its known tokens from the pool, and for ``num_unread`` after them that
        follow before a window moves on; False where there are too few."""
        missing = self._missing(
            seq.block_tables,
            seq.num_computed_tokens,
            seq.num_tokens + num_unread,
            self._chunk_of(seq) + num_unread,
        )
        block_ids = self._pool.allocate(max(0, missing - len(seq.stock)))
        if block_ids is None:
            return False
        seq.stock += block_ids
        return True

    def fill_tables(self, seq: Sequence, num_tokens: int) -> tuple[tuple[int, int], ...]:
        """Moves blocks for so many tokens from its stock to its tables. Returns the copies, from
        and to, that must be made before anything is written."""
        self._extend_tables(seq, num_tokens)
        targets = [table.block_ids[-1] for table in seq.block_tables]
        return tuple(zip(seq.copy_sources, targets, strict=True)) if seq.copy_sources else ()

    def _extend_tables(self, seq: Sequence, num_tokens: int) -> None:
        end_block = num_blocks_of(num_tokens, self._block_size)
        for table in seq.block_tables:
            while table.end_block < end_block:
                table.block_ids.append(seq.stock.pop())

    def advance(self, seq: Sequence, num_computed_tokens: int) -> None:
        """So many are computed: what is full gets its name; blocks that fell out of a window,
        and stock that can't be needed any more, go back."""
        start, seq.num_computed_tokens = seq.num_computed_tokens, num_computed_tokens
        self._pool.release(seq.copy_sources)
        seq.copy_sources = ()
        self._prefix_cache.name_new(seq, start)
        for group, table in zip(self._groups, seq.block_tables, strict=True):
            first = first_kept_block(group, num_computed_tokens, self._block_size)
            if first > table.first_block:
                self._move_window(seq, group, table, first)
        self._release_surplus(seq)

    def _move_window(self, seq: Sequence, group: KVGroup, table: BlockTable, first: int) -> None:
        first_own = table.first_own_block
        shared, own = table.drop_before(first)
        self._pool.release(shared)
        for number, block_id in enumerate(own, first_own):
            is_kept = self._prefix_cache.keep(seq, group, number, block_id)
            if is_kept or self._pool.is_shared(block_id):
                # Another in its place: there is one, unless somebody has found this one already,
                # or reads it, which can only be when the sequence decodes, and may ask for more.
                self._pool.release([block_id])
                seq.stock += self._pool.allocate(1) or []
            else:
                assert block_id not in self._pool.index, f"block {block_id} may be found"
                seq.stock.append(block_id)

    def _release_surplus(self, seq: Sequence) -> None:
        missing = self._missing(
            seq.block_tables, seq.num_computed_tokens, seq.allocated_tokens, self._chunk_of(seq)
        )
        num_surplus = max(0, len(seq.stock) - missing)
        self._pool.release(seq.stock[:num_surplus])
        del seq.stock[:num_surplus]

    # After it

    def release(self, seq: Sequence) -> None:
        """All its blocks back to the pool, which keeps what others may find."""
        if seq.block_tables:
            self._prefix_cache.name_windows(seq)
        num_hashes = seq.num_computed_tokens // HASH_TOKENS
        self._pool.release(seq.block_ids)
        seq.drop_blocks()
        is_turn = seq.request.session_id is not None and seq.is_cacheable
        if self.on_turn_end is not None and is_turn and num_hashes:
            self.on_turn_end(tuple(seq.prefix_hashes[:num_hashes]))

    def forget(self, seq: Sequence) -> None:
        """Nobody may find what it computed."""
        self._prefix_cache.forget(seq)

    def _chunk_of(self, seq: Sequence) -> int:
        return 1 if seq.is_decoding else self._max_chunk

    def _missing(
        self,
        tables: Iterable[BlockTable],
        computed: int,
        target: int,
        max_chunk: int | None = None,
    ) -> int:
        return missing_blocks(
            self._groups,
            tables,
            computed=computed,
            target=target,
            max_chunk=max_chunk or self._max_chunk,
            block_size=self._block_size,
        )
