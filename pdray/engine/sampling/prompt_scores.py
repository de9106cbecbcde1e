"""How likely the model found the prompts that a step ran, chunk by chunk."""

from __future__ import annotations

import numpy as np
import torch

from pdray.core.logprobs import TokenLogprobs
from pdray.engine.batch import num_scored
from pdray.engine.sampling.logprobs import pack_logprobs, unpack_logprobs
from pdray.engine.sampling.scratch import Scratch
from pdray.engine.scheduler import ScheduledChunk
from pdray.engine.upload import upload


class PromptScores:
    """Of the rows that ``batch.scored_rows`` names, in that order."""

    def __init__(self, chunks: tuple[ScheduledChunk, ...], scratch: Scratch) -> None:
        self._chunks = [chunk for chunk in chunks if num_scored(chunk)]
        next_ids = [
            chunk.sequence.token_ids(chunk.start + 1, chunk.start + 1 + num_scored(chunk))
            for chunk in self._chunks
        ]
        self._token_ids = np.array([token_id for ids in next_ids for token_id in ids], np.int64)
        self._num_top = max((_num_top(chunk) for chunk in self._chunks), default=0)
        self._scratch = scratch
        self._packed: list[torch.Tensor] = []

    def add(self, part: slice, logits_LV: torch.Tensor) -> None:
        """Keeps what is wanted of a slice's logits. Does not wait for their device."""
        token_ids_L = upload(self._token_ids[part], logits_LV.device)
        self._packed.append(
            pack_logprobs(logits_LV.float(), token_ids_L, self._num_top, self._scratch)
        )

    def read(self) -> dict[ScheduledChunk, list[TokenLogprobs]]:
        """Waits for the device, once."""
        if not self._chunks:
            return {}
        packed = torch.cat(self._packed).cpu().numpy()
        ends = np.cumsum([num_scored(chunk) for chunk in self._chunks])
        parts = np.split(packed, ends[:-1])
        return {
            chunk: [unpack_logprobs(row, _num_top(chunk)) for row in rows]
            for chunk, rows in zip(self._chunks, parts, strict=True)
        }


def _num_top(chunk: ScheduledChunk) -> int:
    return chunk.sequence.request.sampling.prompt_logprobs or 0
