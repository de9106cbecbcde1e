"""Masks on logits: equal to a plain masked fill, for any widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdray.engine.sampling.masks import forbid, unpack_bits

NUM_WORDS = 3


@pytest.mark.parametrize("vocab_size", [96, 70, 32, 130])
def test_masked_rows_lose_exactly_the_tokens_without_a_bit(vocab_size: int) -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, NUM_WORDS), dtype=np.int32)
    words[0, 0], words[0, 1], words[1] = -1, 0, 0
    rows = [4, 0, 2]
    logits = torch.randn(6, vocab_size)
    expected = logits.clone()
    for row, mask in zip(rows, words, strict=True):
        for token in range(vocab_size):
            if token >= 32 * NUM_WORDS or not (int(mask[token // 32]) >> (token % 32)) & 1:
                expected[row, token] = -torch.inf
    forbid(logits, rows, words)
    assert torch.equal(logits, expected)
    allowed = unpack_bits(torch.from_numpy(words), vocab_size)
    assert torch.equal(allowed, expected[rows].isfinite())


@pytest.mark.parametrize("num_missing", [1, 4, 5, 31])
def test_words_of_which_few_or_most_bits_are_missing(num_missing: int) -> None:
    rng = np.random.default_rng(num_missing)
    bits = np.ones((2, 64 * 32), bool)
    for word in range(64):
        for row in range(2):
            bits[row, 32 * word + rng.permutation(32)[:num_missing]] = False
    assert not bits[:, 31::32].all(), "the sign bit is among them"
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    logits = torch.randn(2, 64 * 32)
    expected = logits.masked_fill(~torch.from_numpy(bits), -torch.inf)
    forbid(logits, [0, 1], words)
    assert torch.equal(logits, expected)


def test_bits_are_unpacked_from_the_lowest() -> None:
    words = torch.tensor([[1, -(2**31)]], dtype=torch.int32)
    assert unpack_bits(words, 66).nonzero()[:, 1].tolist() == [0, 63]
