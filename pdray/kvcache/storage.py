"""The KV arena: one tensor of equal blocks, and each layer's view of its keys and values.

Tensor suffixes: B blocks, C blocks that are copied, K KV heads, P block size, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pdray.kvcache.block_copy import block_copier
from pdray.kvcache.host_memory import map_host_memory
from pdray.kvcache.layout import KVGroup, KVLayout

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Strided views into the arena; ``k_BKPH[b, :, p]`` is the key at offset p of block b."""

    group_id: int
    k_BKPH: torch.Tensor
    v_BKPH: torch.Tensor


class KVStorage:
    """Owns the arena for as long as the worker lives. Zero at first; on the host it starts at a
    page, and all of its memory is taken at once. Past the ``num_blocks`` there is one more
    block, for what is computed and never read. On a device, what is asked for is done in the order
    of the current stream, and not waited for."""

    def __init__(self, layout: KVLayout, num_blocks: int, device: str) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.block_bytes = layout.block_bytes
        num_bytes = (num_blocks + 1) * self.block_bytes
        self._arena = allocate(num_bytes, torch.device(device)).view(TORCH_DTYPES[layout.dtype])
        self._blocks = self._arena.view(num_blocks + 1, -1)
        self._copier = block_copier(self._arena.device)
        self.layers = self._layer_views()

    @property
    def address(self) -> int:
        """Of the arena's first byte."""
        return self._arena.data_ptr()

    @property
    def device_id(self) -> int | None:
        """The CUDA device, None on the host."""
        return self._arena.get_device() if self._arena.is_cuda else None

    @property
    def device(self) -> torch.device:
        return self._arena.device

    @property
    def scratch_block_id(self) -> int:
        return self.num_blocks

    def clear(self, block_ids: Sequence[int]) -> None:
        """Zeroes whole blocks."""
        if block_ids:
            self._blocks.index_fill_(0, self._upload(block_ids), 0)

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Whole blocks, from and to. No block is both, or copied to twice."""
        if copies:
            from_C, to_C = self._upload(list(zip(*copies, strict=True)))
            self._copier.move(self._blocks, from_C, self._blocks, to_C)

    def clear_rows(self, row_elements: int, row_ids: IntArray) -> None:
        """Zeroes parts of blocks: see ``write_rows``."""
        rows_RE = self._arena.view(-1, row_elements)
        rows_RE.index_fill_(0, self._upload(row_ids), 0)

    def write_rows(self, source_SE: torch.Tensor, source_ids: IntArray, row_ids: IntArray) -> None:
        """Writes parts of blocks, converted to the arena's dtype. Its rows are as long as those of
        the source, which lies on the same device, and are counted from the arena's start."""
        rows_RE = self._arena.view(-1, source_SE.shape[1])
        self._copier.move(source_SE, self._upload(source_ids), rows_RE, self._upload(row_ids))

    def _upload(self, block_ids: Sequence[object] | IntArray) -> torch.Tensor:
        # From other memory than pinned, the device's work so far would be waited for.
        ids = torch.tensor(block_ids, dtype=torch.int64, pin_memory=self._arena.is_cuda)
        return ids.to(self._arena.device, non_blocking=True)

    def block(self, block_id: int) -> torch.Tensor:
        """All bytes of one block, writable, as a uint8 tensor."""
        return self._blocks[block_id].view(torch.uint8)

    def _layer_views(self) -> list[LayerCache]:
        """By layer id."""
        caches: dict[int, LayerCache] = {}
        for group in self.layout.groups:
            for index, layer_id in enumerate(group.layer_ids):
                caches[layer_id] = self._layer_view(group, index)
        return [caches[layer_id] for layer_id in sorted(caches)]

    def _layer_view(self, group: KVGroup, index: int) -> LayerCache:
        block_size = self.layout.block_size
        block_stride = self._blocks.shape[1]
        layer_stride = block_size * (group.k_head_dim + group.v_head_dim)
        head_stride = len(group.layer_ids) * layer_stride
        k_offset = index * layer_stride
        v_offset = k_offset + block_size * group.k_head_dim

        def view(head_dim: int, offset: int) -> torch.Tensor:
            size = (self.num_blocks + 1, group.num_kv_heads, block_size, head_dim)
            return self._arena.as_strided(size, (block_stride, head_stride, head_dim, 1), offset)

        return LayerCache(
            group.group_id, view(group.k_head_dim, k_offset), view(group.v_head_dim, v_offset)
        )


def allocate(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Zeros, as bytes; see KVStorage for what is special about the host's."""
    if device.type != "cpu":
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    return torch.frombuffer(map_host_memory(num_bytes), dtype=torch.uint8)
