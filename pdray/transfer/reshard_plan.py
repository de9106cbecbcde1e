"""Which parts of a peer's blocks become which parts of ours, where the layouts differ.

Pure arithmetic over two layouts that are ``convertible``. They have two measures in common:

- A **unit** is as many tokens as divide both block sizes. What is to be read is named in units of
  the peer's blocks and of ours, by numbers that say block, unit within it and KV group.
- A **cell** is what one layer keeps of one KV head for all of a block's tokens. It is one run of
  bytes in a block of either side, and so are cells that follow each other: layers, then heads.

Within a cell keys come before values, so a unit of it is two runs. They are moved as **rows**,
equal runs of elements that divide both, and the distance between our blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdray.core.handoff import BlockRun
from pdray.kvcache.layout import KVGroup, KVLayout

IntArray = npt.NDArray[np.int64]

NOTHING = -1
"""In place of a unit of the peer's: ours becomes zeros, as no token that is read lies there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """``numbers`` of units, taken apart."""

    group_ids: IntArray
    block_ids: IntArray
    indices: IntArray
    """Of each unit within its block."""

    def take(self, chosen: npt.NDArray[np.bool_]) -> Units:
        return Units(
            group_ids=self.group_ids[chosen],
            block_ids=self.block_ids[chosen],
            indices=self.indices[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRange:
    """``num_cells`` that follow each other in a block of ``peer_rank``, and in ours."""

    peer_rank: int
    peer_cell: int
    own_cell: int
    num_cells: int

    def split(self, max_cells: int) -> Iterator[CellRange]:
        """Ranges of at most ``max_cells`` each."""
        for start in range(0, self.num_cells, max_cells):
            yield CellRange(
                peer_rank=self.peer_rank,
                peer_cell=self.peer_cell + start,
                own_cell=self.own_cell + start,
                num_cells=min(max_cells, self.num_cells - start),
            )


@dataclass(frozen=True)
class ReshardPlan:
    """From the blocks of a peer with layout ``theirs`` to those of a worker with ``ours``."""

    theirs: KVLayout
    ours: KVLayout

    @property
    def unit_tokens(self) -> int:
        return math.gcd(self.theirs.block_size, self.ours.block_size)

    @property
    def needs_staging(self) -> bool:
        """Unless runs of bytes in their blocks are runs of bytes in ours."""
        alike = (self.theirs.block_size, self.theirs.dtype)
        return alike != (self.ours.block_size, self.ours.dtype)

    # Units

    def read(
        self,
        run: BlockRun,
        *,
        first_block: int,
        block_ids: Sequence[int],
        start_token: int,
        is_last: bool,
    ) -> tuple[list[int], list[int], int]:
        """The units to read for a run of theirs, into the blocks of our table that begins with
        ``first_block``: those from ``start_token`` on, up to the run's end or the table's. Theirs,
        ours, and the token to go on from. What of our blocks lies before the run is made zero,
        and what lies behind the last one.
        """
        table_end = (first_block + len(block_ids)) * self.ours.block_size
        run_start = min(run.first_block * self.theirs.block_size, table_end)
        run_end = min(run.end_block * self.theirs.block_size, table_end)
        end = table_end if is_last else run_end
        remote: list[int] = []
        local: list[int] = []
        for token in range(start_token, end, self.unit_tokens):
            number = NOTHING
            if run_start <= token < run_end:
                index = token // self.theirs.block_size - run.first_block
                number = self._number(self.theirs, run.group_id, run.block_ids[index], token)
            block_id = block_ids[token // self.ours.block_size - first_block]
            remote.append(number)
            local.append(self._number(self.ours, run.group_id, block_id, token))
        return remote, local, max(start_token, end)

    def _number(self, layout: KVLayout, group_id: int, block_id: int, token: int) -> int:
        units_per_block = layout.block_size // self.unit_tokens
        index = token % layout.block_size // self.unit_tokens
        return (block_id * units_per_block + index) * len(layout.groups) + group_id

    def num_units(self, layout: KVLayout, num_blocks: int) -> int:
        """Numbers of one side's units are below this."""
        return num_blocks * (layout.block_size // self.unit_tokens) * len(layout.groups)

    def first_unit(self, layout: KVLayout, block_id: int) -> int:
        """The number of a block's first unit, as one of the first KV group."""
        return self.num_units(layout, block_id)

    def their_units(self, numbers: Sequence[int] | IntArray) -> Units:
        """Without ``NOTHING`` among them."""
        return self._units(self.theirs, numbers)

    def our_units(self, numbers: Sequence[int] | IntArray) -> Units:
        return self._units(self.ours, numbers)

    def _units(self, layout: KVLayout, numbers: Sequence[int] | IntArray) -> Units:
        rest, group_ids = np.divmod(np.asarray(numbers, dtype=np.int64), len(layout.groups))
        block_ids, indices = np.divmod(rest, layout.block_size // self.unit_tokens)
        return Units(group_ids=group_ids, block_ids=block_ids, indices=indices)

    # Cells

    def cell_ranges(self, group_id: int, own_rank: int) -> tuple[CellRange, ...]:
        """All cells of our block of the group on this rank, in order, each from one rank of the
        peer. Of ranks that hold the same heads, our ranks take theirs in turn."""
        their_group, our_group = self.theirs.groups[group_id], self.ours.groups[group_id]
        num_layers = len(our_group.layer_ids)
        own_first = our_group.first_head_of(own_rank)
        own_end = own_first + our_group.num_kv_heads
        ranges: list[CellRange] = []
        head = own_first
        while head < own_end:
            holder = head // their_group.num_kv_heads
            holder_first = holder * their_group.num_kv_heads
            end = min(own_end, holder_first + their_group.num_kv_heads)
            copies = their_group.num_head_copies
            ranges.append(
                CellRange(
                    peer_rank=holder * copies + own_rank % copies,
                    peer_cell=(head - holder_first) * num_layers,
                    own_cell=(head - own_first) * num_layers,
                    num_cells=(end - head) * num_layers,
                )
            )
            head = end
        return tuple(ranges)

    def peer_ranks(self, own_rank: int) -> set[int]:
        """Those that this rank reads from."""
        return {
            each.peer_rank
            for group in self.ours.groups
            for each in self.cell_ranges(group.group_id, own_rank)
        }

    def their_cell_bytes(self, group_id: int) -> int:
        return _cell_elements(self.theirs, group_id) * self.theirs.dtype_bytes

    def our_cell_bytes(self, group_id: int) -> int:
        return _cell_elements(self.ours, group_id) * self.ours.dtype_bytes

    # Rows

    def row_elements(self, group_id: int) -> int:
        group = self.ours.groups[group_id]
        unit = self.unit_tokens
        return math.gcd(unit * group.k_head_dim, unit * group.v_head_dim, self.ours.block_elements)

    def their_rows(
        self, group_id: int, cells: CellRange, slots: IntArray, indices: IntArray
    ) -> IntArray:
        """Rows of units whose cells lie, without others, in slots one after the other."""
        row = self.row_elements(group_id)
        slot_rows = cells.num_cells * _cell_elements(self.theirs, group_id) // row
        return self._rows(self.theirs, group_id, slots * slot_rows, indices, 0, cells.num_cells)

    def our_rows(self, group_id: int, cells: CellRange, units: Units) -> IntArray:
        """The rows that those become, counted from our arena's start; in the same order."""
        block_rows = self.ours.block_elements // self.row_elements(group_id)
        return self._rows(
            self.ours,
            group_id,
            units.block_ids * block_rows,
            units.indices,
            cells.own_cell,
            cells.num_cells,
        )

    def _rows(
        self,
        layout: KVLayout,
        group_id: int,
        first_rows: IntArray,
        indices: IntArray,
        first_cell: int,
        num_cells: int,
    ) -> IntArray:
        group = layout.groups[group_id]
        row = self.row_elements(group_id)
        k_rows = self.unit_tokens * group.k_head_dim // row
        v_rows = self.unit_tokens * group.v_head_dim // row
        units_per_block = layout.block_size // self.unit_tokens
        in_cell_UR = np.concatenate(
            [
                indices[:, None] * k_rows + np.arange(k_rows),
                units_per_block * k_rows + indices[:, None] * v_rows + np.arange(v_rows),
            ],
            axis=1,
        )
        cells_C = (first_cell + np.arange(num_cells)) * units_per_block * (k_rows + v_rows)
        rows: IntArray = first_rows[:, None, None] + cells_C[:, None] + in_cell_UR[:, None, :]
        return rows.reshape(-1)


def plan_for(theirs: KVLayout, ours: KVLayout) -> ReshardPlan | None:
    """None where the layouts are the same, and ids count blocks."""
    return None if theirs.layout_digest == ours.layout_digest else ReshardPlan(theirs, ours)


def _cell_elements(layout: KVLayout, group_id: int) -> int:
    group: KVGroup = layout.groups[group_id]
    return layout.block_size * (group.k_head_dim + group.v_head_dim)
