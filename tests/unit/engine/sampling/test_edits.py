"""Bias, forbidden ends and penalties against transformers, and against plain arithmetic."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from pdray.engine.sampling.edits import LogitEdits
from pdray.engine.sequence import Sequence
from tests.unit.engine.sampling.rows import EOS_TOKEN_ID, random_logits, row_of, token_ids

VOCAB_SIZE = 40
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)
PENALTIES = st.floats(-2.0, 2.0, width=32)


def edited(logits_SV: torch.Tensor, rows: list[Sequence]) -> torch.Tensor:
    logits_SV = logits_SV.clone()
    LogitEdits([EOS_TOKEN_ID]).apply(logits_SV, rows)
    return logits_SV


def by_hand(logits: list[float], seq: Sequence) -> list[float]:
    """The definitions, token by token."""
    params, counts = seq.request.sampling, Counter(seq.output_token_ids)
    bias = dict(params.logit_bias)
    ends = {EOS_TOKEN_ID, *params.stop_token_ids}
    known = {*seq.request.prompt_token_ids, *seq.output_token_ids}
    result = []
    for token_id, logit in enumerate(logits):
        logit += bias.get(token_id, 0.0)
        if token_id in ends and len(seq.output_token_ids) < params.min_tokens:
            logit = -torch.inf
        if token_id in known:
            factor = params.repetition_penalty
            logit = logit / factor if logit > 0 else logit * factor
        logit -= params.frequency_penalty * counts[token_id]
        logit -= params.presence_penalty * (token_id in counts)
        result.append(logit)
    return result


A_ROW = st.builds(
    row_of,
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    TOKENS,
    presence_penalty=PENALTIES,
    frequency_penalty=PENALTIES,
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.25, 2.0]),
    min_tokens=st.integers(0, 14),
    stop_token_ids=st.lists(st.integers(0, 2 * VOCAB_SIZE), max_size=3).map(tuple),
    logit_bias=st.dictionaries(
        st.integers(0, VOCAB_SIZE - 1), st.floats(-100, 100, width=32), max_size=4
    ).map(lambda bias: tuple(bias.items())),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(A_ROW, min_size=1, max_size=4))
def test_every_edit_is_what_its_definition_says(rows: list[Sequence]) -> None:
    logits_SV = random_logits(len(rows), VOCAB_SIZE)
    expected = [by_hand(row, seq) for row, seq in zip(logits_SV.tolist(), rows, strict=True)]
    torch.testing.assert_close(edited(logits_SV, rows), torch.tensor(expected))


def test_repetition_is_transformers() -> None:
    prompt, output = [3, 5, 5, 8], [5, 9, 9]
    logits_SV = random_logits(1, VOCAB_SIZE)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([prompt + output]), logits_SV.clone()
    )
    row = row_of(prompt, output, repetition_penalty=1.3)
    torch.testing.assert_close(edited(logits_SV, [row]), expected)


def test_min_tokens_is_transformers() -> None:
    logits_SV = random_logits(1, VOCAB_SIZE)
    for num_tokens in range(5):
        output = [9] * num_tokens
        processor = MinNewTokensLengthLogitsProcessor(2, 3, [EOS_TOKEN_ID, 7])
        expected = processor(torch.tensor([[3, 4, *output]]), logits_SV.clone())
        row = row_of([3, 4], output, min_tokens=3, stop_token_ids=(7,))
        torch.testing.assert_close(edited(logits_SV, [row]), expected)


def test_a_history_grows_with_its_sequence() -> None:
    # More tokens than the history has room for at first, some of them again and again.
    params = {"presence_penalty": 0.7, "frequency_penalty": 0.1, "repetition_penalty": 1.1}
    logits_SV = random_logits(1, 500)
    row = row_of([1, 2, 3], **params)
    edits = LogitEdits([EOS_TOKEN_ID])
    for index in range(300):
        row.output_token_ids.append(index * index % 499)
        logits = logits_SV.clone()
        edits.apply(logits, [row])
    expected = torch.tensor([by_hand(logits_SV[0].tolist(), row)])
    torch.testing.assert_close(logits, expected)


def test_rows_that_ask_for_nothing_stay_as_they_are() -> None:
    logits_SV = random_logits(3, VOCAB_SIZE)
    rows = [row_of(), row_of(repetition_penalty=2.0, prompt=range(VOCAB_SIZE)), row_of()]
    after = edited(logits_SV, rows)
    assert torch.equal(after[[0, 2]], logits_SV[[0, 2]])
    assert not torch.equal(after[1], logits_SV[1])


def test_a_large_bias_forces_and_bans() -> None:
    logits_SV = random_logits(2, VOCAB_SIZE)
    best = int(logits_SV[1].argmax())
    rows = [
        row_of(logit_bias=((11, 100.0),)),
        row_of(temperature=0.0, logit_bias=((best, -100.0),)),
    ]
    forced, not_banned = token_ids(logits_SV, rows)
    assert forced == 11
    assert not_banned == int(logits_SV[1].topk(2).indices[1])
