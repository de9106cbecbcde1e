"""Sequences and the prefix cache: what one finds of its prefix, and what it leaves for others.

Pure: names and block ids. Not thread-safe: the engine holds its lock around every call, but
for ``hash``, which is of a sequence that nobody else knows yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from pdray.engine.sequence import BlockTable, Sequence
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_hash import HASH_TOKENS, PrefixHasher
from pdray.kvcache.prefix_index import first_block_of_hit


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What a sequence finds; holds nothing until it is taken.

    With ``num_computed_tokens`` of its tokens its tables would be ``tables``. Where the hit is
    the whole sequence, its last token is computed again all the same, as somebody must say what
    comes next: that token's blocks are ``copy_sources``.
    """

    num_computed_tokens: int
    fork_tokens: int
    tables: tuple[BlockTable, ...]
    copy_sources: tuple[int, ...]

    @property
    def block_ids(self) -> list[int]:
        found = [block_id for table in self.tables for block_id in table.block_ids]
        return [*found, *self.copy_sources]


class PrefixCache:
    """Blocks get their names when it is sure that their sequence will not write over them, nor
    use their place for later tokens: those of groups without a window as soon as they are full,
    those of a window group where a hit may end, and when the sequence gives them back.

    A hit is likely to end at a prompt's end, at a sequence's end, and where two prompts part.
    """

    def __init__(
        self, *, groups: tuple[KVGroup, ...], block_size: int, pool: BlockPool, model_digest: str
    ) -> None:
        assert block_size % HASH_TOKENS == 0, f"a block of {block_size} tokens has no one hash"
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._groups = groups
        self._block_size = block_size
        self._pool = pool
        self._hasher = PrefixHasher(model_digest)

    def hash(self, seq: Sequence) -> None:
        """Names all of its tokens that have none yet."""
        hashes = seq.prefix_hashes
        token_ids = seq.token_ids(len(hashes) * HASH_TOKENS, seq.num_tokens)
        if len(token_ids) >= HASH_TOKENS:
            parent = hashes[-1] if hashes else self._hasher.root(seq.request.cache_salt)
            hashes += self._hasher.chain(parent, token_ids)

    # What a sequence finds

    def find(self, seq: Sequence) -> PrefixHit:
        """The longest hit; nothing where the prompt's logprobs are wanted, as they come from
        computing it. Changes nothing."""
        self.hash(seq)
        block_size = self._block_size
        hashes_per_block = block_size // HASH_TOKENS
        hashes = seq.prefix_hashes[hashes_per_block - 1 :: hashes_per_block]
        if seq.request.scores_prompt and not seq.output_token_ids:
            hashes = []
        match = self._pool.index.match(self._groups, hashes, block_size)
        num_tokens = match.num_blocks * block_size
        is_whole = 0 < num_tokens == seq.num_tokens
        tables = []
        copy_sources = []
        for group in self._groups:
            first = first_block_of_hit(group, num_tokens, block_size)
            names = [(group.group_id, each) for each in hashes[first : match.num_blocks]]
            block_ids = [self._pool.index[name] for name in names]
            if is_whole:
                copy_sources.append(block_ids.pop())
            tables.append(BlockTable(first, block_ids, num_shared=len(block_ids)))
        return PrefixHit(
            num_computed_tokens=num_tokens - is_whole,
            fork_tokens=match.num_full_blocks * block_size,
            tables=tuple(tables),
            copy_sources=tuple(copy_sources),
        )

    def find_leading(self, seq: Sequence, first_blocks: Iterable[int]) -> list[list[int]]:
        """Of each group's full blocks from its first one on, those that are here, up to one that
        is not: whether or not other groups have theirs. Changes nothing."""
        self.hash(seq)
        hashes_per_block = self._block_size // HASH_TOKENS
        hashes = seq.prefix_hashes[hashes_per_block - 1 :: hashes_per_block]
        found = []
        for group, first in zip(self._groups, first_blocks, strict=True):
            block_ids = map(self._pool.index.find, ((group.group_id, h) for h in hashes[first:]))
            leading = itertools.takewhile(lambda block_id: block_id is not None, block_ids)
            found.append([block_id for block_id in leading if block_id is not None])
        return found

    def take(self, seq: Sequence, hit: PrefixHit) -> None:
        """The sequence, which has computed nothing itself, holds the hit, and begins after it.
        Blocks that it has found before stay the same ones: a peer may be reading them."""
        for table, found in zip(seq.block_tables, hit.tables, strict=True):
            dropped, _ = table.drop_before(found.first_block)
            new_ids = found.block_ids[table.end_block - found.first_block :]
            self._pool.retain(new_ids)
            self._pool.release(dropped)
            table.block_ids += new_ids
            table.num_shared = len(table.block_ids)
        self._pool.retain(hit.copy_sources)
        seq.copy_sources = hit.copy_sources
        seq.num_computed_tokens = hit.num_computed_tokens
        seq.fork_tokens = hit.fork_tokens

    def look_again(self, seq: Sequence) -> None:
        """Takes a hit that is longer than the one it has. What it has found by now is counted."""
        hit = self.find(seq)
        if hit.num_computed_tokens > seq.num_computed_tokens:
            self.take(seq, hit)
        seq.fork_tokens = hit.fork_tokens
        seq.num_cached_tokens = seq.num_computed_tokens
        self.num_query_tokens += seq.num_tokens
        self.num_hit_tokens += seq.num_computed_tokens

    # What it leaves

    def name_new(self, seq: Sequence, start: int) -> None:
        """Tokens from ``start`` on have been computed: names what is full now, and, where they
        ended the prompt, what a hit that ends there needs."""
        end = seq.num_computed_tokens
        if end // self._block_size > start // self._block_size:
            for group, table in zip(self._groups, seq.block_tables, strict=True):
                if group.sliding_window is None:
                    self._name(seq, group, table, range(start // self._block_size, table.end_block))
        if start < seq.num_prefill_tokens <= end == seq.num_tokens:
            for group, table in zip(self._groups, seq.block_tables, strict=True):
                self._name(seq, group, table, self._hit(group, seq.num_prefill_tokens))

    def name_windows(self, seq: Sequence) -> None:
        """What it has computed will not move on for now, or not here: names what a hit that
        ends with it needs."""
        for group, table in zip(self._groups, seq.block_tables, strict=True):
            if group.sliding_window is not None:
                self._name(seq, group, table, range(table.first_block, table.end_block))

    def keep(self, seq: Sequence, group: KVGroup, number: int, block_id: int) -> bool:
        """Whether its block, which has just left the window, is one that a likely hit needs. It
        has its name then, and is for the pool to keep."""
        ends = (seq.num_prefill_tokens, seq.fork_tokens)
        is_whole = number >= seq.block_tables[group.group_id].first_whole_block
        if not is_whole or not any(number in self._hit(group, end) for end in ends):
            return False
        self._name(seq, group, BlockTable(number, [block_id]), range(number, number + 1))
        return True

    def forget(self, seq: Sequence) -> None:
        """What it computed is not to be trusted."""
        seq.is_cacheable = False
        self._pool.forget(seq.block_ids)

    def _hit(self, group: KVGroup, num_tokens: int) -> range:
        """Numbers of the blocks that the longest hit in so many tokens needs."""
        end = num_tokens // self._block_size
        return range(first_block_of_hit(group, end * self._block_size, self._block_size), end)

    def _name(self, seq: Sequence, group: KVGroup, table: BlockTable, numbers: range) -> None:
        """Names those of the blocks that the table has and that are full."""
        if not seq.is_cacheable:
            return
        self.hash(seq)
        hashes_per_block = self._block_size // HASH_TOKENS
        num_full = seq.num_computed_tokens // self._block_size
        first = max(numbers.start, table.first_block, table.first_whole_block)
        for number in range(first, min(numbers.stop, table.end_block, num_full)):
            prefix = seq.prefix_hashes[(number + 1) * hashes_per_block - 1]
            self._pool.name(table.block_ids[number - table.first_block], (group.group_id, prefix))
