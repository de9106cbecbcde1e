"""The attention kernels become machine code for Hopper, with the tile sizes they are launched
with: what the interpreter does not see, wrong types and too much memory, shows without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdray.engine.attention.launch import MIN_SPLIT_KEYS, decode_tiling, pad, prompt_tiling
from tests.triton_compiler import compile_kernels

MODULE = "pdray.engine.attention.triton_kernels"
SHARED_BYTES = 227 * 1024
"""Of one program, on an H100 or H200."""
NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

# dtype, query heads per KV head, key and value head dims, block size, softcap, window, sinks
SHAPES: list[tuple[str, int, int, int, int, bool, bool, bool]] = [
    ("bfloat16", 4, 128, 128, 16, False, False, False),  # Llama
    ("bfloat16", 4, 128, 128, 64, False, False, False),
    ("bfloat16", 4, 256, 256, 16, False, True, False),  # Gemma 3
    ("float16", 2, 256, 256, 32, True, True, False),  # Gemma 2
    ("bfloat16", 8, 64, 64, 16, False, True, True),  # gpt-oss
    ("bfloat16", 1, 192, 128, 16, False, False, False),  # DeepSeek, expanded
    ("bfloat16", 7, 80, 80, 16, False, False, False),
    ("float32", 4, 128, 128, 16, True, True, True),
]


def kernels_of(
    dtype: str,
    group: int,
    k_dim: int,
    v_dim: int,
    block_size: int,
    has_softcap: bool,
    has_window: bool,
    has_sinks: bool,
) -> list[dict[str, Any]]:
    element = f"*{NAMES[dtype]}"
    head_pad = max(pad(k_dim), pad(v_dim))
    common: dict[str, Any] = {
        **dict.fromkeys(["out", "query", "key", "value", "k_cache", "v_cache"], element),
        "sinks": element if has_sinks else None,
        "softcap": "fp32" if has_softcap else None,
        "window": "i32" if has_window else None,
        "scaling": "fp32",
        "budget": "i32",
        **dict.fromkeys(["rows", "tiles", "slots"], "*i32"),
        **dict.fromkeys(["split_out", "split_sum"], "*fp32"),
        **dict.fromkeys(["row_stride", "slot_stride", "block_stride", "head_stride"], "i32"),
        **{
            f"{tensor}_{dim}_stride": "i32"
            for tensor in ("query", "key", "value")
            for dim in ("head", "token")
        },
        "GROUP": group,
        "BLOCK_SIZE": block_size,
        "HEADS": 8,
        "HEADS_PAD": 8,
        "K_DIM": k_dim,
        "V_DIM": v_dim,
        "K_PAD": pad(k_dim),
        "V_PAD": pad(v_dim),
        "MIN_KEYS": MIN_SPLIT_KEYS,
    }
    prompts = prompt_tiling(group, head_pad, getattr(torch, dtype))
    decodes = decode_tiling(group, head_pad, getattr(torch, dtype))

    def kernel(name: str, warps: int, stages: int, **constants: int) -> dict[str, Any]:
        return {
            "module": MODULE,
            "kernel": name,
            "arguments": {**common, **constants},
            "warps": warps,
            "stages": stages,
        }

    return [
        kernel("write_rows", 4, 3),
        kernel(
            "attend_prompts",
            prompts.num_warps,
            prompts.num_stages,
            M=prompts.rows,
            TILE=prompts.keys,
        ),
        *(
            kernel(
                "attend_decodes",
                decodes.num_warps,
                decodes.num_stages,
                M=decodes.rows,
                TILE=decodes.keys,
                MAX_SPLITS=max_splits,
            )
            for max_splits in (1, 16)
        ),
        kernel("join_splits", 4, 3, TILE=decodes.keys, MAX_SPLITS=64),
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_fit_a_hopper_gpu() -> None:
    """All in one process: starting one takes as long as compiling some."""
    launched = [(shape, kernel) for shape in SHAPES for kernel in kernels_of(*shape)]
    all_needs = compile_kernels([kernel for _, kernel in launched])
    for (shape, kernel), needs in zip(launched, all_needs, strict=True):
        name = kernel["kernel"]
        what = (shape, name, needs)
        assert needs["shared_bytes"] <= SHARED_BYTES, what
        if shape[0] == "float32":
            continue  # without tensor cores: for comparing results, not for speed
        assert needs["spilled_bytes"] == 0, what
        if name.startswith("attend"):
            assert needs["uses_warpgroup_mma"] or needs["uses_mma"], what
            assert needs["copies_ahead"], what
