"""What a step sampled: on its device first, and the one place where it becomes Python's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pdray.core.logprobs import TokenLogprobs
from pdray.engine.sampling.logprobs import unpack_logprobs


@dataclass(frozen=True, slots=True)
class SampledToken:
    """``token_id`` is None where the logits are no numbers, or leave no token to take."""

    token_id: int | None
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token for each of S rows, -1 for none; ``logprobs_LW`` (logprobs.py) are of the rows
    that ``num_tops`` has a number for."""

    token_ids_S: torch.Tensor
    logprobs_LW: torch.Tensor | None
    num_tops: tuple[int | None, ...]

    def read(self) -> list[SampledToken]:
        """Waits for the device, once."""
        if self.logprobs_LW is None:
            return [SampledToken(_or_none(each), None) for each in self.token_ids_S.tolist()]
        num_rows = len(self.token_ids_S)
        packed = torch.cat([self.token_ids_S.int(), self.logprobs_LW.flatten()]).cpu().numpy()
        rows_LW = iter(packed[num_rows:].reshape(self.logprobs_LW.shape))
        return [
            SampledToken(
                _or_none(token_id),
                None if num_top is None else unpack_logprobs(next(rows_LW), num_top),
            )
            for token_id, num_top in zip(packed[:num_rows].tolist(), self.num_tops, strict=True)
        ]


def _or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
