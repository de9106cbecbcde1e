"""From weights and one number in [0, 1) to a token: the inverse of their cumulative sum.

The noise of a token depends on its request's seed and output index alone: the same in any
batch, on any worker, in any attempt. Suffixes as in blocks.py.
"""

from __future__ import annotations

import numpy as np
import torch

from pdray.engine.sampling.blocks import block_columns, reduce_blocks


def draw_uniform(seed: int, index: int) -> float:
    """In [0, 1), the same for the same arguments on every machine."""
    bits = np.random.Philox(key=seed % (1 << 64), counter=index).random_raw()
    return float(int(bits) >> 11) * 2.0**-53


class Weights:
    """exp((logit - best) / temperature) for every token of some rows."""

    def __init__(self, differences_RV: torch.Tensor, temperatures_R: torch.Tensor) -> None:
        """Of logits minus their row's best; overwrites them with the weights."""
        self._weights_RV = differences_RV.div_(temperatures_R[:, None]).exp_()
        self._sums_RB = reduce_blocks(torch.sum, self._weights_RV).double()
        self.totals_R = self._sums_RB.sum(-1)

    def draw(self, noise_R: torch.Tensor) -> torch.Tensor:
        """[R] tokens: finds the block that the noise falls in, then the token in it."""
        vocab_size = self._weights_RV.shape[1]
        cumulative_RB = self._sums_RB.cumsum(-1)
        targets_R1 = noise_R[:, None] * cumulative_RB[:, -1:]
        blocks_R1 = first_above(cumulative_RB, targets_R1)
        before_R1 = cumulative_RB.gather(1, blocks_R1) - self._sums_RB.gather(1, blocks_R1)
        columns, is_past = block_columns(blocks_R1, vocab_size)
        weights = self._weights_RV.gather(1, columns).double().masked_fill_(is_past, 0.0)
        places = first_above(weights.cumsum(-1), targets_R1 - before_R1)
        return columns.gather(1, places)[:, 0]


def draw_one_of(
    token_ids_RK: torch.Tensor, weights_RK: torch.Tensor, noise_R: torch.Tensor
) -> torch.Tensor:
    """In the order of the ids, whatever order they come in; weights of 0 are never drawn."""
    token_ids_RK, order_RK = token_ids_RK.sort(-1)
    cumulative_RK = weights_RK.double().gather(1, order_RK).cumsum(-1)
    places = first_above(cumulative_RK, noise_R[:, None] * cumulative_RK[:, -1:])
    return token_ids_RK.gather(1, places)[:, 0]


def first_above(cumulative_RN: torch.Tensor, targets_R1: torch.Tensor) -> torch.Tensor:
    """[R, 1] places of the first sums above the targets: never one that adds nothing.

    Rounding may put a target on the total; it is then taken for the number just below.
    """
    below_total = cumulative_RN[:, -1:] * (1.0 - 2.0**-52)
    targets = torch.minimum(targets_R1, below_total)
    places = torch.searchsorted(cumulative_RN, targets, right=True)
    return places.clamp(max=cumulative_RN.shape[1] - 1)
