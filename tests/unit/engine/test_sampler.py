from __future__ import annotations

import pytest
import torch

from pdray.engine.sampler import draw_uniform, sample, sample_row
from tests.engine_driver import sampling_params

VOCAB_SIZE = 3000
NOISE_OF_SEED_7 = [0.87207345482, 0.082842687027, 0.014107696329]


@pytest.fixture
def logits_V() -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 3


def drawn(logits_V: torch.Tensor, count: int, **params: object) -> list[int]:
    sampling = sampling_params(temperature=1.0, **params)  # type: ignore[arg-type]
    return [sample_row(logits_V, sampling, draw_uniform(3, index)) for index in range(count)]


def test_greedy_takes_the_best() -> None:
    logits_SV = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    greedy = sampling_params()
    assert sample(logits_SV, [(greedy, 0), (greedy, 9)]) == [1, 0]


def test_no_rows_no_tokens() -> None:
    assert sample(torch.empty(0, 5), []) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_number_fails_alone(bad: float, temperature: float) -> None:
    logits_SV = torch.zeros(3, 8)
    logits_SV[1, 4] = bad
    logits_SV[:, 2] = 100.0
    params = sampling_params(temperature=temperature)
    assert sample(logits_SV, [(params, 0)] * 3) == [2, None, 2]


def test_noise_depends_on_seed_and_index_alone() -> None:
    assert draw_uniform(1, 2) == draw_uniform(1, 2)
    draws = [draw_uniform(seed, index) for seed in (-1, 0, 1, 2**63) for index in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0.0 <= draw < 1.0 for draw in draws)


def test_noise_is_the_same_on_every_machine_and_release() -> None:
    # A request may go on at a worker of another release: these bits are part of the contract.
    assert [round(draw_uniform(7, index), 12) for index in range(3)] == NOISE_OF_SEED_7


def test_noise_is_uniform() -> None:
    draws = torch.tensor([draw_uniform(11, index) for index in range(4000)])
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert ((counts - 400).abs() < 90).all()


def test_a_rows_token_does_not_depend_on_its_batch(logits_V: torch.Tensor) -> None:
    params = sampling_params(temperature=1.3, top_p=0.9, seed=5)
    alone = sample(logits_V[None], [(params, 4)])
    others = [(sampling_params(), 0), (params, 4), (sampling_params(temperature=0.5, seed=1), 9)]
    logits_SV = torch.stack([logits_V.flip(0), logits_V, logits_V * 2])
    assert sample(logits_SV, others)[1] == alone[0]


def test_frequencies_follow_the_distribution() -> None:
    logits_V = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    counts = torch.bincount(torch.tensor(drawn(logits_V, 1500)), minlength=4) / 1500
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.04, rtol=0)


def test_a_low_temperature_is_nearly_greedy(logits_V: torch.Tensor) -> None:
    cold = sampling_params(temperature=1e-3)
    assert sample_row(logits_V, cold, 0.999) == int(logits_V.argmax())


def test_top_k_draws_from_the_best_k_alone(logits_V: torch.Tensor) -> None:
    best = set(logits_V.topk(5).indices.tolist())
    assert set(drawn(logits_V, 150, top_k=5)) == best


def test_top_k_of_one_is_greedy(logits_V: torch.Tensor) -> None:
    assert set(drawn(logits_V, 20, top_k=1)) == {int(logits_V.argmax())}


def test_top_k_past_the_vocabulary_keeps_all() -> None:
    assert set(drawn(torch.zeros(4), 60, top_k=100)) == {0, 1, 2, 3}


def test_top_p_keeps_the_fewest_that_hold_it() -> None:
    logits_V = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    assert set(drawn(logits_V, 100, top_p=0.79)) == {1, 3}
    assert set(drawn(logits_V, 100, top_p=0.81)) == {1, 2, 3}
    assert set(drawn(logits_V, 100, top_p=1e-6)) == {1}


def test_top_p_counts_within_top_k() -> None:
    logits_V = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the best two, the first holds 4/7.
    assert set(drawn(logits_V, 60, top_k=2, top_p=0.55)) == {0}
    assert set(drawn(logits_V, 60, top_k=2, top_p=0.6)) == {0, 1}


def test_top_p_of_a_flat_distribution_needs_more_than_the_first_try() -> None:
    logits_V = torch.linspace(0.01, 0.0, VOCAB_SIZE)
    kept = drawn(logits_V, 100, top_p=0.8)
    assert max(kept) > 2000
    assert max(kept) < 0.81 * VOCAB_SIZE
