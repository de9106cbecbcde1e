"""Rows of logits with what is wanted of them: what the sampler's tests share."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pdray.engine.sampling.sampled import SampledToken
from pdray.engine.sampling.sampler import Sampler
from pdray.engine.sequence import Sequence
from tests.engine_driver import request_of, sampling_params, sequence_of

EOS_TOKEN_ID = 1


def row_of(prompt: Iterable[int] = (2,), output: Iterable[int] = (), **params: object) -> Sequence:
    """A sequence that has made ``output``; random where no temperature is given."""
    sampling = sampling_params(**{"temperature": 1.0, **params})
    sequence = sequence_of(request_of(prompt, sampling))
    sequence.output_token_ids = list(output)
    return sequence


def sample(logits_SV: torch.Tensor, rows: list[Sequence]) -> list[SampledToken]:
    """With a sampler of its own; the logits stay as they are."""
    return Sampler([EOS_TOKEN_ID]).sample(logits_SV.clone(), rows).read()


def token_ids(logits_SV: torch.Tensor, rows: list[Sequence]) -> list[int | None]:
    return [each.token_id for each in sample(logits_SV, rows)]


def drawn(logits_V: torch.Tensor, count: int, **params: object) -> list[int | None]:
    """Tokens of ``count`` seeds, in one batch."""
    rows = [row_of(seed=seed, **params) for seed in range(count)]
    return token_ids(logits_V.expand(count, -1), rows)


def random_logits(num_rows: int, vocab_size: int, *, seed: int = 0) -> torch.Tensor:
    """No two of a row are equal; normal, so a few likely ones and a long tail."""
    generator = torch.Generator().manual_seed(seed)
    quantiles = (torch.arange(vocab_size, dtype=torch.float64) + 0.5) / vocab_size
    normal = torch.special.ndtri(quantiles).float() * 3
    order = [torch.randperm(vocab_size, generator=generator) for _ in range(num_rows)]
    return torch.stack([normal[each] for each in order])
