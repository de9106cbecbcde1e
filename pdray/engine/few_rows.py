"""Products of a few rows with a packed weight, in the registers of AVX-512.

A decode step multiplies each weight with one row of each sequence. Reading the weight from memory
and the arithmetic then take about as long as each other, and oneDNN's kernels do one after the
other for part of the time. Here chunks of a panel that fit the first-level cache are multiplied
with all rows while the next chunk is fetched.

Panels of 64 outputs are how oneDNN packs a weight on a CPU with AVX-512: [I, 64] in fp32, and
[I / 2, 64, 2] in bf16. They are read where it packed them: no second copy. Sizes in features: O
out, I in.
"""

from __future__ import annotations

import ctypes

import torch

from pdray.engine import few_rows_kernels, openmp
from pdray.engine.few_rows_kernels import PANEL_OUTPUTS
from pdray.engine.openmp import compile_body, launch
from pdray.engine.vectors import has_avx512, has_avx512_bf16

MAX_ROWS = 64
"""At a time. Of more, oneDNN's own kernels are as fast."""
MAX_IDLE = 0.25
"""Of the threads' time, where panels do not divide among them."""
_GROUPED_INPUTS = {torch.float32: 1, torch.bfloat16: 2}
"""Which lie side by side for an output: four bytes."""


class FewRows:
    """The product with one packed weight [O, I]. It must be kept alive for as long."""

    def __init__(self, packed: torch.Tensor, weight_OI: torch.Tensor) -> None:
        self._packed = packed
        self._num_outputs, num_inputs = weight_OI.shape
        self._num_groups = num_inputs // _GROUPED_INPUTS[weight_OI.dtype]
        self._element_bytes = weight_OI.itemsize
        self._num_threads = torch.get_num_threads()
        self._address: int = torch.ops.mkldnn.data_ptr(packed)
        self._multiply_panels = compile_body(
            few_rows_kernels.multiply_panels
            if weight_OI.dtype == torch.float32
            else few_rows_kernels.multiply_pair_panels
        )

    @classmethod
    def of(cls, packed: torch.Tensor, weight_OI: torch.Tensor) -> FewRows | None:
        """None where the CPU, the dtype or the packed form is another one, or where there are
        too few panels to keep all threads busy."""
        if not _is_served(weight_OI.dtype) or len(weight_OI) % PANEL_OUTPUTS:
            return None
        num_panels, num_threads = len(weight_OI) // PANEL_OUTPUTS, torch.get_num_threads()
        share_of_one = -(-num_panels // num_threads)
        if num_panels < (1 - MAX_IDLE) * share_of_one * num_threads:
            return None
        return cls(packed, weight_OI) if _is_in_panels(packed, weight_OI) else None

    def multiply(
        self,
        input_RI: torch.Tensor,
        num_rows: int,
        bias_O: torch.Tensor | None,
        out_RO: torch.Tensor,
    ) -> None:
        """Fills ``out_RO``; all are contiguous, and of the weight's dtype."""
        for start in range(0, num_rows, MAX_ROWS):
            launch(
                self._multiply_panels,
                self._num_threads,
                (
                    min(num_rows - start, MAX_ROWS),
                    self._num_groups,
                    self._num_outputs,
                    input_RI.data_ptr() + start * self._num_groups * 4,
                    self._address,
                    0 if bias_O is None else bias_O.data_ptr(),
                    out_RO.data_ptr() + start * self._num_outputs * self._element_bytes,
                ),
            )


def _is_served(dtype: torch.dtype) -> bool:
    if not (openmp.is_available and has_avx512):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_avx512_bf16)


def _is_in_panels(packed: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """Told by its first panel and its last."""
    num_bytes = weight_OI.numel() * weight_OI.itemsize
    group = _GROUPED_INPUTS[weight_OI.dtype]
    if torch.ops.mkldnn._nbytes(packed) != num_bytes or weight_OI.shape[1] % group:
        return False
    memory = (ctypes.c_char * num_bytes).from_address(torch.ops.mkldnn.data_ptr(packed))
    panels = torch.frombuffer(memory, dtype=weight_OI.dtype).view(
        -1, weight_OI.shape[1] // group, PANEL_OUTPUTS, group
    )
    weights = weight_OI.view(-1, PANEL_OUTPUTS, weight_OI.shape[1] // group, group)
    return all(torch.equal(panels[i].transpose(0, 1), weights[i]) for i in (0, -1))
