"""Workers of any layout in one process: what they hold, token by token, and reads between them.

The reference knows nothing of units, cells and rows: it looks at one number at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pdray.core.handoff import BlockRun
from pdray.kvcache.layout import KVGroup, KVLayout
from pdray.kvcache.staging import Staging
from pdray.kvcache.storage import TORCH_DTYPES, KVStorage
from pdray.transfer import create_transport
from pdray.transfer.base import TransferState
from pdray.transfer.ranked import RankedTransport
from pdray.transfer.resharding import ReshardingTransport, region_of

NUM_HEADS = 4
NUM_TOKENS = 200
CHAMBER_BYTES = 32 * 2**10


def layout_of(
    *,
    tensor_parallel: int = 1,
    block_size: int = 16,
    dtype: str = "float32",
    num_heads: int = NUM_HEADS,
    model_digest: str = "model",
) -> KVLayout:
    """Two groups of unlike sizes, the second with keys and values of unlike widths. With more
    ranks than heads, several ranks hold the same one."""
    copies = max(1, tensor_parallel // num_heads)
    heads = max(1, num_heads // tensor_parallel)
    return KVLayout(
        model_digest=model_digest,
        groups=(
            KVGroup(
                group_id=0,
                layer_ids=(0, 2, 3),
                sliding_window=None,
                num_kv_heads=heads,
                k_head_dim=8,
                v_head_dim=8,
                num_head_copies=copies,
            ),
            KVGroup(
                group_id=1,
                layer_ids=(1, 4),
                sliding_window=40,
                num_kv_heads=heads,
                k_head_dim=12,
                v_head_dim=8,
                num_head_copies=copies,
            ),
        ),
        block_size=block_size,
        dtype=dtype,
        tensor_parallel=tensor_parallel,
    )


class ShardedWorker:
    """Arenas and transports of all its ranks; blocks in any order, all of them random bits that
    are numbers."""

    def __init__(self, worker_id: str, layout: KVLayout, num_blocks: int, *, name: str) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.storages = [
            KVStorage(layout, num_blocks, "cpu") for _ in range(layout.tensor_parallel)
        ]
        for rank, storage in enumerate(self.storages):
            generator = torch.Generator().manual_seed(hash((worker_id, rank)) % 2**32)
            for layer in storage.layers:
                for view in (layer.k_BKPH, layer.v_BKPH):
                    view.copy_(torch.randn(view.shape, generator=generator))
        self.ranks = [
            ReshardingTransport(
                create_transport(name, f"{worker_id}.{rank}", region_of(storage)),
                storage,
                rank=rank,
                make_staging=lambda each: Staging(each, chamber_bytes=CHAMBER_BYTES),
            )
            for rank, storage in enumerate(self.storages)
        ]
        self.transport = RankedTransport(layout, num_blocks + 1, self.ranks[0], self.ranks[1:])

    def write(self, group_id: int, blocks: list[int], first_token: int, model: Model) -> None:
        """The model's numbers into the slots of consecutive tokens."""
        for rank, token, head, layer, block_id in self._places(group_id, blocks, first_token):
            group = self.layout.groups[group_id]
            cache = self.storages[rank].layers[layer]
            model_head = head + group.first_head_of(rank)
            offset = token % self.layout.block_size
            cache.k_BKPH[block_id, head, offset] = model.keys[layer, token, model_head]
            cache.v_BKPH[block_id, head, offset] = model.values[layer, token, model_head]

    def read(self, group_id: int, blocks: list[int], first_token: int) -> Tokens:
        """What the slots hold, by what names it in any layout but for the rank."""
        found: Tokens = {}
        for rank, token, head, layer, block_id in self._places(group_id, blocks, first_token):
            group = self.layout.groups[group_id]
            cache = self.storages[rank].layers[layer]
            offset = token % self.layout.block_size
            place = (rank, layer, head + group.first_head_of(rank), token)
            found[place] = (
                cache.k_BKPH[block_id, head, offset].clone(),
                cache.v_BKPH[block_id, head, offset].clone(),
            )
        return found

    def _places(
        self, group_id: int, blocks: list[int], first_token: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        group = self.layout.groups[group_id]
        for rank in range(self.layout.tensor_parallel):
            for number, block_id in enumerate(blocks):
                for offset in range(self.layout.block_size):
                    token = first_token + number * self.layout.block_size + offset
                    for head in range(group.num_kv_heads):
                        for layer in group.layer_ids:
                            yield rank, token, head, layer, block_id

    def close(self) -> None:
        self.transport.close()


Tokens = dict[tuple[int, int, int, int], tuple[torch.Tensor, torch.Tensor]]


class Model:
    """Random keys and values of every layer, token and head, in a dtype that they are made in."""

    def __init__(self, dtype: str, num_heads: int = NUM_HEADS) -> None:
        generator = torch.Generator().manual_seed(7)

        def draw(width: int) -> torch.Tensor:
            size = (5, NUM_TOKENS + 64, num_heads, width)
            return torch.randn(size, generator=generator).to(TORCH_DTYPES[dtype])

        wide, narrow = draw(12), draw(8)
        self.keys = {
            (layer, token, head): wide[layer, token, head, : 12 if layer in (1, 4) else 8]
            for layer in range(5)
            for token in range(wide.shape[1])
            for head in range(num_heads)
        }
        self.values = {
            (layer, token, head): narrow[layer, token, head]
            for layer in range(5)
            for token in range(narrow.shape[1])
            for head in range(num_heads)
        }


@contextmanager
def two_workers(
    theirs: KVLayout, ours: KVLayout, *, name: str = "loopback"
) -> Iterator[tuple[ShardedWorker, ShardedWorker]]:
    owner = ShardedWorker("owner", theirs, 2 * -(-NUM_TOKENS // theirs.block_size) + 2, name=name)
    reader = ShardedWorker("reader", ours, 2 * -(-NUM_TOKENS // ours.block_size) + 2, name=name)
    try:
        reader.transport.add_peer("owner", owner.transport.describe())
        yield owner, reader
    finally:
        reader.close()
        owner.close()


def finish(
    owner: ShardedWorker, reader: ShardedWorker, remote: list[int], local: list[int]
) -> TransferState:
    transfer_id = reader.transport.pull("owner", remote, local)
    while (state := reader.transport.poll(transfer_id)) is TransferState.PENDING:
        owner.transport.progress()
    return state


def scattered(num_blocks: int, count: int, seed: int) -> list[int]:
    """Ids of so many blocks, in no order."""
    order: list[int] = np.random.default_rng(seed).permutation(num_blocks).tolist()
    return order[:count]


def run_of(group_id: int, first_block: int, block_ids: list[int]) -> BlockRun:
    return BlockRun(group_id=group_id, first_block=first_block, block_ids=tuple(block_ids))
