"""Products of a few rows with a packed weight, in the registers of AVX-512.

A decode step multiplies each weight with one row of each sequence. Reading the weight from memory
and the arithmetic then take about as long as each other, and oneDNN's kernels do one after the
other for part of the time. Here chunks of a panel that fit the first-level cache are multiplied
with all rows while the next chunk is fetched.

Panels of 64 outputs, each [I, 64], are how oneDNN packs an fp32 weight on a CPU with AVX-512, and
it is read where it packed it: no second copy. Sizes in features: O out, I in.
"""

from __future__ import annotations

import ctypes

import torch

from pdray.engine import few_rows_kernels, openmp
from pdray.engine.few_rows_kernels import PANEL_OUTPUTS
from pdray.engine.openmp import compile_body, launch
from pdray.engine.vectors import has_avx512

MAX_ROWS = 64
"""At a time. Of more, oneDNN's own kernels are as fast."""
MAX_IDLE = 0.25
"""Of the threads' time, where panels do not divide among them."""


class FewRows:
    """The product with one packed weight [O, I]. It must be kept alive for as long."""

    def __init__(self, packed: torch.Tensor, num_outputs: int, num_inputs: int) -> None:
        self._packed = packed
        self._num_outputs = num_outputs
        self._num_inputs = num_inputs
        self._num_threads = torch.get_num_threads()
        self._address: int = torch.ops.mkldnn.data_ptr(packed)
        self._multiply_panels = compile_body(few_rows_kernels.multiply_panels)

    @classmethod
    def of(cls, packed: torch.Tensor, weight_OI: torch.Tensor) -> FewRows | None:
        """None where the CPU, the dtype or the packed form is another one, or where there are
        too few panels to keep all threads busy."""
        num_outputs, num_inputs = weight_OI.shape
        if (
            not (openmp.is_available and has_avx512)
            or weight_OI.dtype != torch.float32
            or num_outputs % PANEL_OUTPUTS
        ):
            return None
        num_panels, num_threads = num_outputs // PANEL_OUTPUTS, torch.get_num_threads()
        share_of_one = -(-num_panels // num_threads)
        if num_panels < (1 - MAX_IDLE) * share_of_one * num_threads:
            return None
        return cls(packed, num_outputs, num_inputs) if _is_in_panels(packed, weight_OI) else None

    def multiply(
        self,
        input_RI: torch.Tensor,
        num_rows: int,
        bias_O: torch.Tensor | None,
        out_RO: torch.Tensor,
    ) -> None:
        """Fills ``out_RO``; all are contiguous, fp32."""
        for start in range(0, num_rows, MAX_ROWS):
            launch(
                self._multiply_panels,
                self._num_threads,
                (
                    min(num_rows - start, MAX_ROWS),
                    self._num_inputs,
                    self._num_outputs,
                    input_RI.data_ptr() + start * self._num_inputs * 4,
                    self._address,
                    0 if bias_O is None else bias_O.data_ptr(),
                    out_RO.data_ptr() + start * self._num_outputs * 4,
                ),
            )


def _is_in_panels(packed: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """Told by its first panel and its last."""
    num_bytes = weight_OI.numel() * weight_OI.itemsize
    if torch.ops.mkldnn._nbytes(packed) != num_bytes:
        return False
    memory = (ctypes.c_char * num_bytes).from_address(torch.ops.mkldnn.data_ptr(packed))
    panels = torch.frombuffer(memory, dtype=weight_OI.dtype).view(
        -1, weight_OI.shape[1], PANEL_OUTPUTS
    )
    return all(
        torch.equal(panels[index].t(), weight_OI.unflatten(0, (-1, PANEL_OUTPUTS))[index])
        for index in (0, -1)
    )
