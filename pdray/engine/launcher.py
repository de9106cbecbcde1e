"""A step's plan becomes work that the device is given, and then tokens that the host has read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pdray.engine.batch import build_batch
from pdray.engine.runner import Runner
from pdray.engine.sampling.blocks import BlockMaxima
from pdray.engine.sampling.prompt_scores import PromptScores
from pdray.engine.sampling.sampled import Sampled, SampledToken
from pdray.engine.sampling.sampler import Sampler
from pdray.engine.scheduler import StepPlan
from pdray.engine.sequence import Sequence
from pdray.engine.tensor_parallel.ranks import LeadRunner
from pdray.engine.upload import upload
from pdray.engine.warming import scratch_batches
from pdray.kvcache.layout import KVLayout


@dataclass(frozen=True, slots=True, eq=False)
class LaunchedStep:
    """``sampled`` is of ``sampled_sequences``, in their order."""

    plan: StepPlan
    sampled_sequences: tuple[Sequence, ...]
    sampled: Sampled
    prompt_scores: PromptScores

    @property
    def sequences(self) -> frozenset[Sequence]:
        return frozenset(chunk.sequence for chunk in self.plan.chunks)

    def read(self) -> dict[Sequence, SampledToken]:
        """Waits for the device, and gives sequences their prompts' logprobs."""
        tokens = self.sampled.read()
        for chunk, scores in self.prompt_scores.read().items():
            chunk.sequence.add_prompt_logprobs(chunk.start, scores)
        return dict(zip(self.sampled_sequences, tokens, strict=True))


class Launcher:
    def __init__(self, runner: Runner | LeadRunner, sampler: Sampler, layout: KVLayout) -> None:
        self.runner = runner
        self._sampler = sampler
        self._layout = layout

    @torch.inference_mode()
    def launch(self, plan: StepPlan, previous: LaunchedStep | None = None) -> LaunchedStep:
        """Does not wait for the device. With ``previous``, which nobody has read yet, the plan
        is one more token of sequences that it sampled: what they begin with stays there."""
        input_ids_T = None if previous is None else newest_tokens(plan, previous)
        batch = build_batch(plan, self._layout.groups, self._layout.block_size, input_ids_T)
        prompt_scores = self._sampler.prompt_scores(plan.chunks)
        logits_SV = self.runner.run(batch, prompt_scores.add)
        sequences = tuple(chunk.sequence for chunk in batch.sampled_chunks)
        sampled = self._sampler.sample(logits_SV, sequences, num_unread=int(previous is not None))
        return LaunchedStep(plan, sequences, sampled, prompt_scores)

    @torch.inference_mode()
    def warm_up(self, scratch_block_id: int) -> None:
        """To be called once, before there are requests. Raises RankLostError."""
        for batch in scratch_batches(self._layout, scratch_block_id):
            BlockMaxima(self.runner.run(batch)).best_ids_S.tolist()  # waits for the device


def newest_tokens(plan: StepPlan, previous: LaunchedStep) -> torch.Tensor:
    """[T] of the plan's sequences, on the device."""
    # A sequence that got none will end, whatever is computed for it now.
    token_ids_S = previous.sampled.token_ids_S.clamp(min=0)
    rows = {seq: row for row, seq in enumerate(previous.sampled_sequences)}
    rows_T = np.array([rows[chunk.sequence] for chunk in plan.chunks])
    return token_ids_S[upload(rows_T, token_ids_S.device)]
