"""What is kept, and with which probabilities, against transformers' own processors."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pdray.engine.sampling.blocks import BlockMaxima
from pdray.engine.sampling.choosing import Weights
from pdray.engine.sampling.drawn import DrawnRows
from pdray.engine.sampling.filtering import FIRST_CANDIDATES, draw_filtered, kept_weights
from tests.unit.engine.sampling.rows import drawn, random_logits, row_of

VOCAB_SIZE = 10_000
CASES = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 127},
    {"top_k": 128},
    {"top_k": 4096},
    {"top_k": VOCAB_SIZE * 2},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"top_p": 1e-9},
    {"min_p": 0.2},
    {"min_p": 1e-4},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 3000, "top_p": 0.99},
    {"min_p": 0.01, "top_p": 0.7},
    {"min_p": 1e-6, "top_p": 0.999},
    {"min_p": 0.02, "top_k": 20, "top_p": 0.9},
]


def reference(logits_V: torch.Tensor, temperature: float, case: dict[str, float]) -> torch.Tensor:
    """[V] probabilities, in double."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if "min_p" in case:
        warpers.append(MinPLogitsWarper(case["min_p"]))
    if "top_k" in case:
        warpers.append(TopKLogitsWarper(int(case["top_k"])))
    if "top_p" in case:
        warpers.append(TopPLogitsWarper(case["top_p"]))
    return warpers(torch.tensor([[0]]), logits_V[None].double())[0].softmax(-1)


def kept(
    logits_V: torch.Tensor, temperature: float, case: dict[str, float]
) -> tuple[torch.Tensor, int]:
    """[V] probabilities that ours draws with, and how many candidates settled it."""
    maxima = BlockMaxima(logits_V[None])
    rows = DrawnRows.of([(0, row_of(temperature=temperature, **case))], maxima.best_S)
    differences = logits_V[None] - maxima.best_S
    rows.totals_R[:] = Weights(differences, rows.temperatures_R).totals_R
    few = (count for count in FIRST_CANDIDATES if count < len(logits_V))
    for count in (*few, len(logits_V)):
        candidates = maxima.largest(rows.rows_R, count)
        weights_RK, is_settled_R = kept_weights(candidates, rows)
        if is_settled_R.all():
            break
    probabilities = torch.zeros(len(logits_V), dtype=torch.float64)
    weights = weights_RK[0].double()
    probabilities[candidates.token_ids_RK[0]] = weights / weights.sum()
    return probabilities, count


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kept_tokens_are_transformers(case: dict[str, float], temperature: float) -> None:
    for seed in range(3):
        logits_V = random_logits(1, VOCAB_SIZE, seed=seed)[0]
        expected = reference(logits_V, temperature, case)
        ours, _ = kept(logits_V, temperature, case)
        assert (ours > 0).nonzero().tolist() == (expected > 0).nonzero().tolist()
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_few_candidates_settle_a_peaked_row_and_all_a_flat_one() -> None:
    peaked = random_logits(1, VOCAB_SIZE)[0] * 4
    assert kept(peaked, 1.0, {"top_p": 0.9})[1] == FIRST_CANDIDATES[0]
    assert kept(peaked * 0.01, 1.0, {"top_p": 0.9})[1] == VOCAB_SIZE


@pytest.mark.parametrize(("top_p", "count"), [(0.02, 4096), (0.5, 65536), (0.9, 100_000)])
def test_a_large_flat_vocabulary_takes_ever_more_candidates(top_p: float, count: int) -> None:
    logits_V = random_logits(1, 100_000)[0] * 0.05
    ours, num_candidates = kept(logits_V, 1.0, {"top_p": top_p})
    assert num_candidates == count
    torch.testing.assert_close(
        ours, reference(logits_V, 1.0, {"top_p": top_p}), atol=1e-7, rtol=1e-3
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_of_one_batch_are_filtered_each_by_its_own(case: dict[str, float]) -> None:
    # Peaked, middling and flat rows need ever more candidates.
    logits_SV = random_logits(3, VOCAB_SIZE) * torch.tensor([[4.0], [1.0], [0.01]])
    maxima = BlockMaxima(logits_SV)
    sequences = [(row, row_of(seed=seed, **case)) for row in range(3) for seed in range(20)]
    rows = DrawnRows.of(sequences, maxima.best_S)
    differences = logits_SV[rows.rows_R] - rows.best_R[:, None]
    rows.totals_R[:] = Weights(differences, rows.temperatures_R).totals_R
    token_ids = draw_filtered(maxima, rows, VOCAB_SIZE).tolist()
    expected = [reference(each, 1.0, case) for each in logits_SV]
    for (row, _), token_id, noise in zip(sequences, token_ids, rows.noise_R, strict=True):
        cumulative = expected[row].cumsum(-1)
        below = float(cumulative[token_id - 1]) if token_id else 0.0
        assert expected[row][token_id] > 0
        assert below - 1e-6 <= float(noise) <= float(cumulative[token_id]) + 1e-6


def test_ties_with_the_last_one_kept_are_kept() -> None:
    logits_V = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert set(drawn(logits_V, 200, top_k=2)) == {1, 2, 3, 4}
    assert set(drawn(logits_V, 200, top_p=0.6)) == {1, 2, 3, 4}


def test_ties_past_the_first_candidates_are_kept_too() -> None:
    logits_V = torch.zeros(5000)
    logits_V[17] = 1.0
    assert len(set(drawn(logits_V, 400, top_k=2))) > 300


def test_a_row_of_which_little_is_allowed_is_settled_at_once() -> None:
    logits_V = torch.full((VOCAB_SIZE,), -torch.inf)
    logits_V[[3, 500]] = torch.tensor([1.0, 0.0])
    for case in ({"top_k": 50}, {"top_p": 0.99}, {"top_k": 50, "top_p": 0.9999}):
        probabilities, count = kept(logits_V, 1.0, case)
        assert (probabilities > 0).nonzero().flatten().tolist() == [3, 500]
        assert count == FIRST_CANDIDATES[0]
