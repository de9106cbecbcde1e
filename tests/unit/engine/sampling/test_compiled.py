"""The compiled loops against torch's own operations, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pdray.engine.sampling.blocks import BLOCK, BlockMaxima, reduce_blocks
from pdray.engine.sampling.choosing import Weights
from pdray.engine.sampling.compiled import CompiledRows, find_maxima
from pdray.engine.sampling.scratch import Scratch
from pdray.engine.sampling.weighing import CompiledWeights, weigh
from tests.unit.engine.sampling.rows import drawn, random_logits

VOCAB_SIZES = [3, 64, 65, 1000, 5000, 40_000]
SOME_ROWS = torch.tensor([3, 0, 2])
CHI_SQUARE_LIMITS = {10: 35.6, 20: 52.4}
"""By degrees of freedom: one fair sample in 10,000 is past it."""


@pytest.fixture(params=[1, 3], ids=lambda count: f"{count} threads", autouse=True)
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def compiled_rows(maxima: BlockMaxima, rows_R: torch.Tensor) -> CompiledRows:
    rows = maxima.compiled(rows_R)
    assert rows is not None
    return rows


def masked_logits(vocab_size: int) -> torch.Tensor:
    """Five rows: of the second one token in ten is possible, of the third one alone."""
    logits_SV = random_logits(5, vocab_size)
    logits_SV[1, torch.arange(vocab_size) % 10 > 0] = -torch.inf
    logits_SV[2, 1:] = -torch.inf
    return logits_SV


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_maxima_of_bf16_blocks_are_torchs(vocab_size: int) -> None:
    logits_SV = masked_logits(vocab_size).bfloat16()
    logits_SV[0, -1], logits_SV[1, 0], logits_SV[3, 1] = torch.nan, -torch.nan, torch.inf
    logits_SV[4] = -logits_SV[4].abs()
    theirs_SB = reduce_blocks(torch.amax, logits_SV)
    torch.testing.assert_close(find_maxima(logits_SV), theirs_SB, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_weights_are_torchs(vocab_size: int, temperature: float) -> None:
    logits_SV = masked_logits(vocab_size)
    maxima = BlockMaxima(logits_SV)
    rows_R = torch.arange(5)
    temperatures_R = torch.full((5,), temperature)
    ours = weigh(logits_SV, maxima, rows_R, temperatures_R, Scratch())
    assert isinstance(ours, CompiledWeights)
    theirs = Weights(logits_SV - maxima.best_S[:, None], temperatures_R)
    torch.testing.assert_close(ours.totals_R, theirs.totals_R, rtol=1e-6, atol=0)
    shares_SV = (logits_SV.double() / temperature).softmax(-1)
    for noise in torch.linspace(0.001, 0.999, 97).double():
        token_ids = ours.draw(noise.expand(5))
        cumulative_SV = shares_SV.cumsum(-1)
        after = cumulative_SV.gather(1, token_ids[:, None])[:, 0]
        own = shares_SV.gather(1, token_ids[:, None])[:, 0]
        assert (own > 0).all()
        assert ((after - own - 1e-6 <= noise) & (noise <= after + 1e-6)).all()


@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_noise_draw_tokens_that_have_weight(noise: float) -> None:
    logits_SV = torch.full((2, 1000), -torch.inf)
    logits_SV[0, [70, 130]] = 0.0
    logits_SV[1, [999, 3]] = torch.tensor([5.0, 5.0 - 40.0])
    maxima = BlockMaxima(logits_SV)
    weights = weigh(logits_SV, maxima, torch.arange(2), torch.ones(2), Scratch())
    noise_R = torch.full((2,), noise, dtype=torch.float64)
    assert weights.draw(noise_R).tolist() == ([70, 3] if noise == 0.0 else [130, 999])


def test_rows_are_taken_by_their_numbers() -> None:
    logits_SV = masked_logits(1000)
    maxima = BlockMaxima(logits_SV)
    noise_R = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    temperatures_R = torch.tensor([0.5, 1.0, 1.5])
    together = weigh(logits_SV, maxima, SOME_ROWS, temperatures_R, Scratch()).draw(noise_R)
    for place, row in enumerate(SOME_ROWS):
        alone_1V = logits_SV[row][None].clone()
        alone = weigh(
            alone_1V,
            BlockMaxima(alone_1V),
            torch.tensor([0]),
            temperatures_R[place : place + 1],
            Scratch(),
        )
        assert alone.draw(noise_R[place : place + 1]).tolist() == [int(together[place])]


@pytest.mark.parametrize("count", [1, 2, 20, 62])
@pytest.mark.parametrize("spread", [1.0, 0.0], ids=["all unlike", "all equal"])
def test_the_largest_are_torchs(count: int, spread: float) -> None:
    logits_SV = masked_logits(5000)
    logits_SV[4] *= spread
    found = compiled_rows(BlockMaxima(logits_SV), torch.arange(5)).largest(count)
    expected = logits_SV.topk(count)
    assert torch.equal(found[0], expected.values)
    for row in range(5):
        is_possible = found[0][row].isfinite()
        ids = found[1][row][is_possible]
        assert len(set(ids.tolist())) == len(ids)
        assert torch.equal(logits_SV[row, ids], expected.values[row][is_possible])


def test_the_largest_of_a_vocabulary_of_many_blocks() -> None:
    """So many that the threshold is found in the maxima of runs of them."""
    logits_SV = random_logits(3, 2000 * BLOCK + 7)
    logits_SV[1] = logits_SV[1].sort(descending=True).values
    logits_SV[2].fill_(1.0)
    for count in (1, 5, 100):
        logits, ids = compiled_rows(BlockMaxima(logits_SV), torch.arange(3)).largest(count)
        assert torch.equal(logits, logits_SV.topk(count).values)
        assert torch.equal(logits_SV.gather(1, ids), logits)


def test_tokens_above_a_logit_are_counted() -> None:
    logits_SV = masked_logits(5000)
    bounds_R = torch.tensor([0.5, -torch.inf, 100.0])
    counts = compiled_rows(BlockMaxima(logits_SV), SOME_ROWS).count_above(bounds_R)
    expected = (logits_SV[SOME_ROWS] > bounds_R[:, None]).sum(-1)
    assert torch.equal(counts, expected)


@pytest.mark.parametrize(
    ("params", "num_bins"),
    [({}, 20), pytest.param({"top_p": 0.9}, 20, marks=pytest.mark.slow), ({"top_k": 11}, 10)],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, float], num_bins: int) -> None:
    num_draws = 6000
    logits_V = random_logits(1, 4000, seed=3)[0]
    shares_V = logits_V.double().softmax(-1)
    order = shares_V.argsort(descending=True)
    if "top_p" in params:
        shares_V[order[1:][shares_V[order].cumsum(-1)[:-1] >= params["top_p"]]] = 0.0
    if "top_k" in params:
        shares_V[order[int(params["top_k"]) :]] = 0.0
    shares_V /= shares_V.sum()
    token_ids = torch.tensor(drawn(logits_V, num_draws, **params))
    assert (shares_V[token_ids] > 0).all()
    counts_V = torch.bincount(token_ids, minlength=4000).double()
    likely = order[:num_bins]
    observed = torch.cat([counts_V[likely], num_draws - counts_V[likely].sum()[None]])
    expected = num_draws * torch.cat([shares_V[likely], 1 - shares_V[likely].sum()[None]])
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < CHI_SQUARE_LIMITS[num_bins]
