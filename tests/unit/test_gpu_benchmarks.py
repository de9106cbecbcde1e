"""What the GPU benchmarks measure runs here too, small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.gpu.attention import (
    SHAPES,
    TOLERANCES,
    decode_bytes_per_s,
    prefill_flops_per_s,
    worst_error,
)
from benchmarks.gpu.blocks import copy_bytes_per_s, wrong_moves

CPU = torch.device("cpu")


def one_second(action: Callable[[], object]) -> float:
    action()
    return 1.0


# Scores and sums are fp32 whatever is read: where float16 goes right once, it goes right.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "bfloat16") for name in SHAPES), ("llama", "float16"), ("softcap", "float16")],
)
def test_attention_is_within_its_tolerance(name: str, dtype: str) -> None:
    assert worst_error(name, dtype, CPU, "triton") < TOLERANCES[dtype]


def test_counts_what_attention_reads_and_computes() -> None:
    kwargs = {"num_seqs": 2, "context": 20, "num_layers": 2}
    read_bytes = decode_bytes_per_s(CPU, one_second, backend="sdpa", **kwargs)
    assert read_bytes == 2 * 2 * 20 * (8 * 256) * 2
    flops = prefill_flops_per_s(CPU, one_second, num_prompts=2, num_tokens=3, computed=4)
    assert flops == 2 * (5 + 6 + 7) * 32 * (2 * 128 + 2 * 128)


def test_blocks_move() -> None:
    assert wrong_moves(CPU) == []
    rates = copy_bytes_per_s(CPU, one_second, num_blocks=4, target=torch.float32)
    assert rates["gather"] == 2 * 256 * 1024 * (2 + 4)
    assert rates["copy"] == 2 * 256 * 1024 * (2 + 2)
