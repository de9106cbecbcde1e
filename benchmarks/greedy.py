"""Sequences of the engine that end at a number of tokens and by nothing else."""

from __future__ import annotations

from collections.abc import Sequence as Row

from pdray.core.request import Request, SamplingParams
from pdray.engine.sequence import Sequence


def greedy_sequence(prompt: Row[int], num_tokens: int, request_id: str = "0") -> Sequence:
    sampling = SamplingParams(
        max_tokens=num_tokens,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        seed=0,
        stop_token_ids=(),
        ignore_eos=True,
    )
    request = Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        output_token_ids=(),
        sampling=sampling,
    )
    return Sequence.from_request(request, 1, is_lent=False)
