"""Logits to tokens, all rows of a step at once; greedy rows cost one pass over their logits.

The order is vLLM's: logprobs are of the logits as the model gave them; then bias, forbidden
tokens and penalties, temperature, min_p, top_k, top_p, and the draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Row

import numpy as np
import torch

from pdray.engine.sampling.blocks import BlockMaxima
from pdray.engine.sampling.drawing import draw_tokens
from pdray.engine.sampling.edits import LogitEdits, is_edited
from pdray.engine.sampling.logprobs import pack_logprobs
from pdray.engine.sampling.prompt_scores import PromptScores
from pdray.engine.sampling.sampled import Sampled
from pdray.engine.sampling.scratch import Scratch
from pdray.engine.scheduler import ScheduledChunk
from pdray.engine.sequence import Sequence
from pdray.engine.upload import upload


class Sampler:
    """One engine's. A row's token depends on its own logits and sequence alone."""

    def __init__(self, eos_token_ids: Iterable[int], device: str = "cpu") -> None:
        """Where it has to compile its loops for the device first, that takes seconds."""
        if device == "cpu":
            from pdray.engine.sampling import compiled

            if compiled.is_available:
                compiled.compile_bodies()
        self._edits = LogitEdits(eos_token_ids)
        self._scratch = Scratch()

    @torch.inference_mode()
    def sample(
        self, logits_SV: torch.Tensor, sequences: Row[Sequence], *, num_unread: int = 0
    ) -> Sampled:
        """The next token of each sequence; or the one after ``num_unread`` that were sampled
        before and that it does not know yet, which grammars and penalties do not allow. Changes
        ``logits_SV``; does not wait for its device."""
        num_tops = tuple(seq.request.sampling.logprobs for seq in sequences)
        if not sequences:
            return Sampled(torch.empty(0, dtype=torch.int64), None, num_tops)
        drawn = [
            (row, seq) for row, seq in enumerate(sequences) if not seq.request.sampling.is_greedy
        ]
        scored = [row for row, num_top in enumerate(num_tops) if num_top is not None]
        is_changed = any(is_edited(seq, num_unread) for seq in sequences)
        if drawn or scored or is_changed:
            logits_SV = logits_SV.float().contiguous()
        raw_LV = None
        if scored:
            rows_L = upload(np.array(scored), logits_SV.device)
            is_whole = len(scored) == len(sequences) and not is_changed
            raw_LV = logits_SV if is_whole else logits_SV[rows_L]
        if is_changed:
            self._edits.apply(logits_SV, sequences, num_unread)
        maxima = BlockMaxima(logits_SV)
        token_ids_S = maxima.best_ids_S
        if drawn:
            token_ids_S = draw_tokens(logits_SV, maxima, drawn, self._scratch, num_unread)
        logprobs_LW = None
        if raw_LV is not None:
            num_top = max(num for num in num_tops if num is not None)
            logprobs_LW = pack_logprobs(raw_LV, token_ids_S[rows_L], num_top, self._scratch)
        is_good_S = maxima.best_S.isfinite()
        return Sampled(token_ids_S.masked_fill(~is_good_S, -1), logprobs_LW, num_tops)

    def prompt_scores(self, chunks: tuple[ScheduledChunk, ...]) -> PromptScores:
        """For the step that computes ``chunks``."""
        return PromptScores(chunks, self._scratch)
