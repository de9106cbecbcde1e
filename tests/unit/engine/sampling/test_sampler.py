from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.engine.sampling.sampler import Sampler
from tests.unit.engine.sampling.rows import drawn, random_logits, row_of, sample, token_ids

VOCAB_SIZES = [3, 63, 64, 65, 258, 3000, 40_000]
"""Round the edges of a block, and past the first candidates."""


def test_no_rows_no_tokens() -> None:
    assert sample(torch.empty(0, 5), []) == []


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_best_and_of_equals_the_first(vocab_size: int, dtype: torch.dtype) -> None:
    logits_SV = (torch.randn(50, vocab_size) * 3).to(dtype)
    best = [row.index(max(row)) for row in logits_SV.tolist()]
    assert token_ids(logits_SV, [row_of(temperature=0.0)] * 50) == best


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    logits_SV = random_logits(4, 300)
    rows = [row_of(temperature=each) for each in (0.0, 1e-12, 9e-6, 1e-5)]
    assert token_ids(logits_SV, rows) == logits_SV.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {},
        {"top_p": 0.9},
        {"top_k": 3, "min_p": 0.1},
        {"repetition_penalty": 1.5, "logprobs": 2},
    ],
    ids=str,
)
def test_a_row_that_is_no_number_fails_alone(bad: float, params: dict[str, object]) -> None:
    logits_SV = torch.zeros(3, 70)
    logits_SV[1, 4] = bad
    logits_SV[:, 2] = 100.0
    assert token_ids(logits_SV, [row_of(**params)] * 3) == [2, None, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_leaves_no_token_fails_alone(temperature: float) -> None:
    logits_SV = torch.zeros(2, 70)
    logits_SV[1] = -torch.inf
    assert token_ids(logits_SV, [row_of(temperature=temperature)] * 2)[1] is None


ANY_PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([None, 1, 7, 200, 10_000]),
        "top_p": st.sampled_from([1.0, 0.95, 0.5, 1e-9]),
        "min_p": st.sampled_from([0.0, 0.05, 1.0]),
        "presence_penalty": st.sampled_from([0.0, 1.5]),
        "frequency_penalty": st.sampled_from([0.0, -1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logit_bias": st.sampled_from([(), ((5, 4.0), (9, -100.0))]),
        "min_tokens": st.sampled_from([0, 5]),
        "logprobs": st.sampled_from([None, 0, 4]),
        "seed": st.integers(0, 2**63 - 1),
    }
)
A_ROW = st.tuples(
    st.integers(0, 9),
    st.lists(st.integers(0, 299), min_size=1, max_size=8),
    st.lists(st.integers(0, 299), max_size=8),
    ANY_PARAMS,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(A_ROW, min_size=2, max_size=6))
def test_a_row_does_not_depend_on_its_batch(
    rows: list[tuple[int, list[int], list[int], dict[str, object]]],
) -> None:
    logits_SV = random_logits(10, 300)[[which for which, *_ in rows]]
    sequences = [row_of(prompt, output, **params) for _, prompt, output, params in rows]
    together = sample(logits_SV, sequences)
    alone = [sample(logits_SV[i : i + 1], [seq])[0] for i, seq in enumerate(sequences)]
    assert [each.token_id for each in together] == [each.token_id for each in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.logprobs is None) == (theirs.logprobs is None)
        if ours.logprobs is not None and theirs.logprobs is not None:
            assert ours.logprobs.top_token_ids == theirs.logprobs.top_token_ids
            assert ours.logprobs.rank == theirs.logprobs.rank
            assert ours.logprobs.logprob == pytest.approx(theirs.logprobs.logprob, abs=1e-6)


def test_a_sampler_that_has_seen_other_batches_says_the_same() -> None:
    sampler = Sampler([1])
    logits_SV = random_logits(6, 5000)
    row = row_of(top_p=0.9, seed=3)
    fresh = token_ids(logits_SV[2:3], [row])
    sampler.sample(logits_SV.flip(0), [row_of(seed=i) for i in range(6)])
    assert [each.token_id for each in sampler.sample(logits_SV[2:3], [row]).read()] == fresh


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_frequencies_follow_the_distribution(vocab_size: int) -> None:
    logits_V = random_logits(1, vocab_size)[0]
    probabilities = logits_V.double().softmax(-1)
    likely = probabilities.topk(3).indices
    counts = torch.bincount(torch.tensor(drawn(logits_V, 2000)), minlength=vocab_size) / 2000
    torch.testing.assert_close(counts[likely], probabilities[likely].float(), atol=0.045, rtol=0)


def test_the_same_seed_draws_another_token_at_another_index() -> None:
    logits_V = torch.zeros(10_000)
    rows = [row_of(output=[3] * index, seed=5) for index in range(20)]
    assert len(set(token_ids(logits_V.expand(20, -1), rows))) > 15
