from __future__ import annotations

import pytest
import torch

from tests.unit.engine.sampling.rows import random_logits, row_of, sample


@pytest.mark.parametrize("vocab_size", [20, 258, 3000, 40_000])
def test_logprobs_are_log_softmax(vocab_size: int) -> None:
    logits_SV = random_logits(6, vocab_size)
    rows = [row_of(seed=seed, logprobs=[0, 3, 20][seed % 3]) for seed in range(6)]
    for logits_V, row, token in zip(logits_SV, rows, sample(logits_SV, rows), strict=True):
        expected = logits_V.double().log_softmax(-1)
        found = token.logprobs
        num_top = row.request.sampling.logprobs
        assert found is not None
        assert num_top is not None
        assert found.token_id == token.token_id
        assert found.logprob == pytest.approx(float(expected[found.token_id]), abs=2e-6)
        assert found.rank == 1 + int((expected > expected[found.token_id]).sum())
        best = expected.topk(num_top)
        assert found.top_token_ids == tuple(best.indices.tolist())
        assert found.top_logprobs == pytest.approx(best.values.tolist(), abs=2e-6)


def test_logprobs_are_of_the_logits_as_the_model_gave_them() -> None:
    logits_SV = random_logits(3, 300)
    changes = {
        "logit_bias": ((7, 100.0),),
        "repetition_penalty": 2.0,
        "presence_penalty": 2.0,
        "min_tokens": 5,
        "top_k": 1,
        "top_p": 0.1,
    }
    rows = [row_of(range(50), logprobs=2), row_of(range(50), logprobs=2, **changes), row_of()]
    plain, changed, without = sample(logits_SV, rows)
    assert without.logprobs is None
    assert changed.token_id == 7
    for row, token in enumerate((plain, changed)):
        expected = logits_SV[row].double().log_softmax(-1)
        assert token.logprobs is not None
        assert token.token_id is not None
        assert token.logprobs.logprob == pytest.approx(float(expected[token.token_id]), abs=2e-6)
        assert token.logprobs.top_token_ids == tuple(expected.topk(2).indices.tolist())


def test_a_token_that_cannot_be_has_minus_infinity() -> None:
    logits_SV = torch.full((1, 100), -torch.inf)
    logits_SV[0, 4] = 2.0
    (token,) = sample(logits_SV, [row_of(logprobs=2)])
    assert token.logprobs is not None
    assert token.logprobs.logprob == 0.0
    assert token.logprobs.top_logprobs == (0.0, -torch.inf)


def test_bfloat16_logits_are_taken_as_they_are() -> None:
    logits_SV = random_logits(2, 500).bfloat16()
    for row, token in enumerate(sample(logits_SV, [row_of(logprobs=0, top_p=0.9)] * 2)):
        expected = logits_SV[row].double().log_softmax(-1)
        assert token.logprobs is not None
        assert token.token_id is not None
        assert token.logprobs.logprob == pytest.approx(float(expected[token.token_id]), abs=2e-6)
