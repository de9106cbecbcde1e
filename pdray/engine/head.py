"""The output layer on a few rows at a time, after one pass through the layers before it.

Models differ in what comes after the last layer (soft caps, scales), so it is the model's own
code that runs, with its layers replaced by what they gave.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Score = Callable[[slice, torch.Tensor], None]
"""Takes the logits of a slice of a batch's ``scored_rows``, which are gone after it."""

MAX_SLICE_LOGITS = 2**24
"""64 MiB of float32."""


class HiddenStates:
    """What the ``layers`` of a ``model`` gave in the run that ``capture`` saw."""

    def __init__(self, model: torch.nn.Module, layers: torch.nn.Module) -> None:
        self._model = model
        self._layers = layers
        self._output: object = None

    def capture(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """``run`` runs the model once."""

        def keep(module: torch.nn.Module, args: object, output: object) -> None:
            self._output = output

        hook = self._layers.register_forward_hook(keep)
        try:
            return run()
        finally:
            hook.remove()

    def score(
        self, input_ids_T: torch.Tensor, rows: torch.Tensor, vocab_size: int, score: Score
    ) -> None:
        """Calls ``score`` with slices of ``rows``, in order; never are all logits there at once."""
        assert self._output is not None, f"{type(self._layers).__name__} was not run"
        step = max(1, MAX_SLICE_LOGITS // vocab_size)
        forward = self._layers.forward
        self._layers.forward = lambda *args, **kwargs: self._output
        try:
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                output = self._model(
                    input_ids=input_ids_T[None], use_cache=False, logits_to_keep=rows[part]
                )
                score(part, output.logits[0])
        finally:
            self._layers.forward = forward
