from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pdray.kvcache.layout import KVLayout, LayerKV, group_layers

FULL = LayerKV(sliding_window=None, num_kv_heads=1, k_head_dim=256, v_head_dim=256)
SLIDING = replace(FULL, sliding_window=512)


def layout_of(layers: list[LayerKV], **changes: object) -> KVLayout:
    options = {"model_digest": "m", "block_size": 16, "dtype": "float32"} | changes
    return KVLayout.of_layers(layers, **options)  # type: ignore[arg-type]


def test_gemma_has_six_groups_of_three_layers_and_no_waste() -> None:
    layers = [FULL if layer % 6 == 5 else SLIDING for layer in range(18)]
    layout = layout_of(layers)
    assert [len(group.layer_ids) for group in layout.groups] == [3] * 6
    assert [group.sliding_window for group in layout.groups] == [512] * 5 + [None]
    assert layout.groups[5].layer_ids == (5, 11, 17)
    assert layout.block_bytes == 3 * 16 * 512 * 4


def test_layers_of_one_kind_are_one_group() -> None:
    assert [group.layer_ids for group in group_layers([FULL] * 4)] == [(0, 1, 2, 3)]


def test_a_block_is_as_large_as_the_largest_group_needs() -> None:
    wide = LayerKV(sliding_window=None, num_kv_heads=4, k_head_dim=192, v_head_dim=128)
    layout = layout_of([FULL, wide])
    assert [group.layer_ids for group in layout.groups] == [(0,), (1,)]
    assert layout.block_bytes == 4 * (192 + 128) * 16 * 4


@given(
    st.lists(
        st.builds(
            LayerKV,
            sliding_window=st.sampled_from([None, 128, 512]),
            num_kv_heads=st.sampled_from([1, 2, 8]),
            k_head_dim=st.sampled_from([64, 192]),
            v_head_dim=st.sampled_from([64, 128]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_every_layer_is_in_one_group_of_its_kind(layers: list[LayerKV]) -> None:
    groups = group_layers(layers)
    assert sorted(layer for group in groups for layer in group.layer_ids) == [*range(len(layers))]
    assert [group.group_id for group in groups] == [*range(len(groups))]
    for group in groups:
        for layer_id in group.layer_ids:
            layer = layers[layer_id]
            assert layer.sliding_window == group.sliding_window
            assert layer.num_kv_heads == group.num_kv_heads
            assert (layer.k_head_dim, layer.v_head_dim) == (group.k_head_dim, group.v_head_dim)


def test_the_digest_changes_with_all_that_decides_the_bytes() -> None:
    base = layout_of([FULL, SLIDING])
    others = [
        layout_of([FULL, SLIDING], model_digest="other"),
        layout_of([FULL, SLIDING], block_size=32),
        layout_of([FULL, SLIDING], dtype="bfloat16"),
        layout_of([FULL, SLIDING], tensor_parallel=2),
        layout_of([SLIDING, FULL]),
        layout_of([FULL, replace(SLIDING, sliding_window=1024)]),
        layout_of([replace(FULL, k_head_dim=128, v_head_dim=384), SLIDING]),
    ]
    digests = {base.layout_digest, *(other.layout_digest for other in others)}
    assert len(digests) == 1 + len(others)
    assert layout_of([FULL, SLIDING]).layout_digest == base.layout_digest


def test_the_description_names_what_differs() -> None:
    text = layout_of([FULL, SLIDING], dtype="bfloat16").describe()
    assert "bfloat16" in text
    assert "window 512" in text
    assert "1 KV heads of 256 + 256" in text
    assert "ranks" not in text
    assert "on each of 4 ranks" in layout_of([FULL], tensor_parallel=4).describe()
