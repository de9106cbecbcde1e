"""What no engine can beat on this machine: the time to read a step's bytes, or to do its
operations with the best matrix kernel there is, whichever is longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.engine_peers.cases import CASES, Case

_READ_BYTES = 1 << 30
_GEMM_SHAPES = ((1024, 2048, 2048), (1024, 640, 2048), (4096, 640, 2048))
_REPEATS = 5


def measure_limits(
    model: Path, dtype: str, num_threads: int, report: Callable[[str, float], None]
) -> None:
    """Reports bytes/s, operations/s and each case's least seconds."""
    torch.set_num_threads(num_threads)
    torch_dtype = getattr(torch, dtype)
    bytes_per_s = read_bytes_per_s()
    flops_per_s = max(gemm_flops_per_s(*shape, torch_dtype) for shape in _GEMM_SHAPES)
    report("bytes_per_s", bytes_per_s)
    report("flops_per_s", flops_per_s)
    costs = ModelCosts(model, torch_dtype.itemsize)
    for case in CASES:
        least_s = max(costs.num_bytes(case) / bytes_per_s, costs.num_operations(case) / flops_per_s)
        report(case.name, least_s)


def read_bytes_per_s() -> float:
    """The best of some reads of memory much larger than any cache."""
    memory = torch.ones(_READ_BYTES // 4)
    return _READ_BYTES / min(_seconds(memory.sum) for _ in range(_REPEATS))


def gemm_flops_per_s(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """With the weights packed once, or as they are where that is faster."""
    data = torch.randn(rows, inputs, dtype=dtype)
    weight = torch.randn(outputs, inputs, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def packed_product() -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            data, packed, None, "none", [], ""
        )
        return product

    def plain_product() -> torch.Tensor:
        return torch.nn.functional.linear(data, weight)

    seconds = min(
        _seconds(product) for product in (packed_product, plain_product) for _ in range(_REPEATS)
    )
    return 2 * rows * inputs * outputs / seconds


class ModelCosts:
    """Bytes that a step must read and operations that it must do, from the weights' shapes."""

    def __init__(self, model: Path, dtype_bytes: int) -> None:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            shapes = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        self._dtype_bytes = dtype_bytes
        self._window: int | None = getattr(text, "sliding_window", None)
        self._query_size: int = text.num_hidden_layers * text.num_attention_heads * text.head_dim
        self._kv_size: int = text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        linears = [each for each in shapes.modules() if isinstance(each, torch.nn.Linear)]
        head: int = shapes.get_output_embeddings().weight.numel()
        self._head_weights = head
        self._layer_weights = sum(each.weight.numel() for each in linears) - head

    def num_bytes(self, case: Case) -> int:
        """Every weight once; keys and values of the context once for each sequence."""
        weights = self._layer_weights + self._head_weights
        if case.phase == "prefill":
            return weights * self._dtype_bytes
        return (weights + case.batch * self._kv_elements(case.tokens)) * self._dtype_bytes

    def num_operations(self, case: Case) -> int:
        """Of the matrix products with weights, and of attention; the output layer runs for one
        token of each sequence."""
        attention_pairs = case.tokens if case.phase == "decode" else self._causal_pairs(case.tokens)
        attention = case.batch * attention_pairs * 4 * self._query_size
        products = case.num_tokens * self._layer_weights + case.batch * self._head_weights
        return 2 * products + attention

    def _causal_pairs(self, tokens: int) -> int:
        """Queries with the keys they see; as if all layers had the window, where there is one."""
        window = self._window or tokens
        return sum(min(position + 1, window) for position in range(tokens))

    def _kv_elements(self, tokens: int) -> int:
        return 2 * tokens * self._kv_size


def _seconds(action: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    action()
    return time.perf_counter() - started_at
