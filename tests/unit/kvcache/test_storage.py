from __future__ import annotations

import mmap

import torch

from pdray.kvcache.layout import KVLayout, LayerKV
from pdray.kvcache.storage import KVStorage

LAYERS = [
    LayerKV(sliding_window=None, num_kv_heads=2, k_head_dim=6, v_head_dim=4),
    LayerKV(sliding_window=None, num_kv_heads=2, k_head_dim=6, v_head_dim=4),
    LayerKV(sliding_window=8, num_kv_heads=4, k_head_dim=5, v_head_dim=5),
]


def storage_of(num_blocks: int = 5) -> KVStorage:
    layout = KVLayout.of_layers(LAYERS, model_digest="m", block_size=4, dtype="float32")
    return KVStorage(layout, num_blocks, "cpu")


def test_the_arena_starts_at_a_page_and_is_zero() -> None:
    storage = storage_of()
    assert storage.address % mmap.PAGESIZE == 0
    assert storage.device_id is None
    assert all(not storage.block(block_id).any() for block_id in range(5))


def test_layers_of_a_group_do_not_overlap_and_fill_the_block() -> None:
    storage = storage_of()
    elements = 0
    for layer_id in (0, 1):
        cache = storage.layers[layer_id]
        cache.k_BKPH[3] = 1.0 + layer_id
        cache.v_BKPH[3] = 11.0 + layer_id
        elements += cache.k_BKPH[3].numel() + cache.v_BKPH[3].numel()
    block = storage.block(3).view(torch.float32)
    assert elements == block.numel()
    assert sorted(block.unique().tolist()) == [1.0, 2.0, 11.0, 12.0]
    assert not storage.block(2).any()
    assert not storage.block(4).any()


def test_within_a_block_heads_are_outermost_then_layers_then_keys_before_values() -> None:
    storage = storage_of()
    for layer_id in (0, 1):
        for head in (0, 1):
            storage.layers[layer_id].k_BKPH[1, head] = 100 * head + 10 * layer_id + 1
            storage.layers[layer_id].v_BKPH[1, head] = 100 * head + 10 * layer_id + 2
    block = storage.block(1).view(torch.float32)
    order = [int(value) for value in torch.unique_consecutive(block)]
    assert order == [1, 2, 11, 12, 101, 102, 111, 112]


def test_a_block_can_be_cleared() -> None:
    storage = storage_of()
    for block_id in range(5):
        storage.block(block_id).fill_(1)
    storage.clear([1, 4])
    assert [bool(storage.block(block_id).any()) for block_id in range(5)] == [1, 0, 1, 1, 0]


def test_copies_carry_every_layer_of_every_group_and_touch_no_other_block() -> None:
    storage = storage_of(9)
    for block_id in range(9):
        block = storage.block(block_id).view(torch.float32)
        block.copy_(torch.randn(block.shape))
    views = [view for layer in storage.layers for view in (layer.k_BKPH, layer.v_BKPH)]
    before = [view.clone() for view in views]
    # In no order, neighbours among them, one source twice.
    copies = [(6, 0), (2, 8), (5, 4), (2, 3)]
    storage.copy(copies)
    from_C, to_C = torch.tensor(copies).unbind(1)
    for view, expected in zip(views, before, strict=True):
        expected[to_C] = expected[from_C]
        assert torch.equal(view, expected)


def test_no_copies_and_nothing_to_clear_change_nothing() -> None:
    storage = storage_of()
    storage.block(2).fill_(1)
    storage.copy([])
    storage.clear([])
    assert [bool(storage.block(block_id).any()) for block_id in range(5)] == [0, 0, 1, 0, 0]


def test_the_scratch_block_lies_past_all_others() -> None:
    storage = storage_of(3)
    assert storage.scratch_block_id == 3
    storage.layers[0].k_BKPH[storage.scratch_block_id].fill_(1)
    assert [bool(storage.block(block_id).any()) for block_id in range(4)] == [0, 0, 0, 1]
