from __future__ import annotations

import pytest
import torch

from pdray.engine.sampling.choosing import Weights, draw_one_of, draw_uniform

NOISE_OF_SEED_7 = [0.87207345482, 0.082842687027, 0.014107696329]
LARGEST_NOISE = 1.0 - 2.0**-53


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


def weights_of(probabilities: torch.Tensor) -> Weights:
    logits = probabilities.log()
    return Weights((logits - logits.max())[None], torch.ones(1))


@pytest.mark.parametrize("vocab_size", [64, 100, 1000])
def test_a_draw_inverts_the_cumulative_sum(vocab_size: int) -> None:
    probabilities = torch.rand(vocab_size, generator=torch.Generator().manual_seed(1))
    probabilities[::3] = 0.0
    probabilities /= probabilities.sum()
    cumulative = probabilities.double().cumsum(-1) / probabilities.double().sum()
    for noise in torch.linspace(0.001, 0.999, 200).double():
        expected = int((cumulative <= noise).sum())
        (from_all,) = weights_of(probabilities).draw(noise[None]).tolist()
        assert from_all == expected


@pytest.mark.parametrize("noise", [0.0, LARGEST_NOISE])
def test_the_ends_of_the_noise_draw_tokens_that_have_weight(noise: float) -> None:
    probabilities = torch.zeros(200)
    probabilities[[70, 130]] = 0.5
    expected = 70 if noise == 0.0 else 130
    noise_R = torch.tensor([noise], dtype=torch.float64)
    assert weights_of(probabilities).draw(noise_R).tolist() == [expected]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    drawn = draw_one_of(order[None], probabilities[order][None], noise_R)
    assert drawn.tolist() == [expected]


def test_candidates_are_drawn_in_the_order_of_their_ids() -> None:
    token_ids, weights = torch.tensor([[9, 2, 5]]), torch.tensor([[3.0, 1.0, 0.0]])
    for noise, expected in [(0.0, 2), (0.24, 2), (0.26, 9), (0.99, 9)]:
        noise_R = torch.tensor([noise], dtype=torch.float64)
        assert draw_one_of(token_ids, weights, noise_R).tolist() == [expected]
