"""What a step sampled: on its device first, and the one place where it becomes Python's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pdray.core.logprobs import TokenLogprobs
from pdray.engine.download import Download
from pdray.engine.sampling.logprobs import unpack_logprobs


@dataclass(frozen=True, slots=True)
class SampledToken:
    """``token_id`` is None where the logits are no numbers, or leave no token to take."""

    token_id: int | None
    logprobs: TokenLogprobs | None


class Sampled:
    """One token for each of S rows, -1 for none, on its way to the host from the start.
    ``logprobs_LW`` (logprobs.py) are of the rows that ``num_tops`` has a number for."""

    def __init__(
        self,
        token_ids_S: torch.Tensor,
        logprobs_LW: torch.Tensor | None,
        num_tops: Sequence[int | None],
    ) -> None:
        """Does not wait for the device, where ``token_ids_S`` stays for the next step."""
        self.token_ids_S = token_ids_S
        self._num_tops = num_tops
        parts = [token_ids_S.int()]
        if logprobs_LW is not None:
            parts.append(logprobs_LW.flatten())
        self._packed = Download(torch.cat(parts))

    def read(self) -> list[SampledToken]:
        """Waits for the device, once, and for nothing that it was given since."""
        packed = self._packed.read().numpy()
        num_rows = len(self._num_tops)
        num_scored = sum(num_top is not None for num_top in self._num_tops)
        rows_LW = iter(packed[num_rows:].reshape(num_scored, -1) if num_scored else ())
        return [
            SampledToken(
                _or_none(token_id),
                None if num_top is None else unpack_logprobs(next(rows_LW), num_top),
            )
            for token_id, num_top in zip(packed[:num_rows].tolist(), self._num_tops, strict=True)
        ]


def _or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
