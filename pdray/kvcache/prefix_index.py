"""Which block holds which stretch of which prefix, and how long a prefix is here in all groups.

Knows no holders and no order of use: the block pool does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pdray.kvcache.layout import KVGroup

BlockName = tuple[int, bytes]
"""A KV group, and the hash of the prefix that the block ends."""


def first_block_of_hit(group: KVGroup, num_tokens: int, block_size: int) -> int:
    """Of the blocks that a group must have for a hit of ``num_tokens``, a multiple of
    ``block_size``: those with a position in the last window."""
    if group.sliding_window is None:
        return 0
    return max(0, num_tokens - group.sliding_window) // block_size


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """``num_blocks`` lead a prefix that is here in all groups. In the groups without a window
    ``num_full_blocks`` do: others have been the same that far."""

    num_blocks: int
    num_full_blocks: int


def match_prefix(
    has: Callable[[BlockName], bool],
    groups: Sequence[KVGroup],
    hashes: Sequence[bytes],
    block_size: int,
) -> PrefixMatch:
    """The longest hit, given the hash at the end of each block of a prefix: the groups without a
    window have all its blocks, the others those of the last window."""
    num_full = len(hashes)
    for group in groups:
        if group.sliding_window is None:
            num_full = _count_leading(has, group.group_id, hashes[:num_full])
    windows = [group for group in groups if group.sliding_window is not None]
    num_blocks = num_full
    while num_blocks:
        gap = _last_gap(has, windows, hashes, num_blocks, block_size)
        if gap is None:
            break
        # A longer hit than this would need the missing block, too.
        num_blocks = gap
    return PrefixMatch(num_blocks, num_full)


def _count_leading(has: Callable[[BlockName], bool], group_id: int, hashes: Sequence[bytes]) -> int:
    for count, each in enumerate(hashes):
        if not has((group_id, each)):
            return count
    return len(hashes)


def _last_gap(
    has: Callable[[BlockName], bool],
    windows: Sequence[KVGroup],
    hashes: Sequence[bytes],
    num_blocks: int,
    block_size: int,
) -> int | None:
    """The last block that some group lacks for a hit of ``num_blocks``."""
    for group in windows:
        first = first_block_of_hit(group, num_blocks * block_size, block_size)
        for number in range(num_blocks - 1, first - 1, -1):
            if not has((group.group_id, hashes[number])):
                return number
    return None


def names_of_hit(
    groups: Sequence[KVGroup], hashes: Sequence[bytes], block_size: int
) -> list[BlockName]:
    """Of all blocks that a hit of the whole prefix needs."""
    end = len(hashes)
    return [
        (group.group_id, hashes[number])
        for group in groups
        for number in range(first_block_of_hit(group, end * block_size, block_size), end)
    ]


class NameListener(Protocol):
    """Told of every name that a block gets or loses."""

    def came(self, name: BlockName) -> None: ...

    def went(self, name: BlockName) -> None: ...


class PrefixIndex:
    """A block has one name at most, and a name one block."""

    def __init__(self) -> None:
        self.log: NameListener | None = None
        self._blocks: dict[BlockName, int] = {}
        self._names: dict[int, BlockName] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._names

    def __getitem__(self, name: BlockName) -> int:
        return self._blocks[name]

    def names(self) -> Iterable[BlockName]:
        """Valid until the next change."""
        return self._blocks.keys()

    def name_of(self, block_id: int) -> BlockName:
        return self._names[block_id]

    def find(self, name: BlockName) -> int | None:
        return self._blocks.get(name)

    def put(self, block_id: int, name: BlockName) -> None:
        assert block_id not in self._names, f"block {block_id} has a name"
        assert name not in self._blocks, f"block {self._blocks[name]} has block {block_id}'s name"
        self._blocks[name] = block_id
        self._names[block_id] = name
        if self.log is not None:
            self.log.came(name)

    def remove(self, block_id: int) -> None:
        name = self._names.pop(block_id)
        del self._blocks[name]
        if self.log is not None:
            self.log.went(name)

    def match(
        self, groups: Sequence[KVGroup], hashes: Sequence[bytes], block_size: int
    ) -> PrefixMatch:
        """The longest hit, given the hash at the end of each block of a prefix."""
        return match_prefix(self._blocks.__contains__, groups, hashes, block_size)

    def check_integrity(self) -> None:
        """Raises AssertionError where names and blocks are not one to one."""
        assert len(self._blocks) == len(self._names), "a name or a block is there twice"
        for block_id, name in self._names.items():
            assert self._blocks.get(name) == block_id, f"block {block_id} is not where its name is"
