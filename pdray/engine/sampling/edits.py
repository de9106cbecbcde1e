"""Changes to the logits before anything is drawn: bias, forbidden tokens, penalties.

All touch only the tokens they name, in place, however large batch and vocabulary are.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Row
from weakref import WeakKeyDictionary

import numpy as np
import torch

from pdray.engine.sampling.history import FloatArray, IntArray, TokenHistory
from pdray.engine.sampling.masks import forbid_outside_grammars
from pdray.engine.sequence import Sequence
from pdray.engine.upload import upload

Rows = list[tuple[int, Sequence]]
"""Sequences with their rows in the logits."""


def is_edited(seq: Sequence, num_unread: int) -> bool:
    sampling = seq.request.sampling
    return (
        seq.grammar_state is not None
        or sampling.has_penalties
        or bool(sampling.logit_bias)
        or must_go_on(seq, num_unread)
    )


def must_go_on(seq: Sequence, num_unread: int) -> bool:
    """``min_tokens`` cannot ask for more than its grammar has."""
    if seq.grammar_state is not None and seq.grammar_state.is_over:
        return False
    return len(seq.output_token_ids) + num_unread < seq.request.sampling.min_tokens


class LogitEdits:
    """Keeps each sequence's token history for as long as the sequence lives."""

    def __init__(self, eos_token_ids: Iterable[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._histories: WeakKeyDictionary[Sequence, TokenHistory] = WeakKeyDictionary()

    def apply(self, logits_SV: torch.Tensor, sequences: Row[Sequence], num_unread: int = 0) -> None:
        """In place, in vLLM's order. ``logits_SV`` is contiguous float32. Each sequence has got
        ``num_unread`` tokens more than it knows."""
        rows = [(row, seq) for row, seq in enumerate(sequences) if is_edited(seq, num_unread)]
        for _, seq in rows:
            if seq.grammar_state is not None:
                seq.grammar_state.wait()
        logits = FlatLogits(logits_SV)
        self._add_bias(logits, [(row, seq) for row, seq in rows if seq.request.sampling.logit_bias])
        self._forbid_ends(logits, [(row, seq) for row, seq in rows if must_go_on(seq, num_unread)])
        forbid_outside_grammars(logits_SV, rows)
        self._penalize(
            logits, [(row, seq) for row, seq in rows if seq.request.sampling.has_penalties]
        )

    def _add_bias(self, logits: FlatLogits, rows: Rows) -> None:
        if not rows:
            return
        biases = [np.array(seq.request.sampling.logit_bias) for _, seq in rows]
        places = logits.places(rows, [bias[:, 0].astype(np.int64) for bias in biases])
        values = np.concatenate([bias[:, 1] for bias in biases]).astype(np.float32)
        logits.set(places, logits.get(places) + logits.tensor(values))

    def _forbid_ends(self, logits: FlatLogits, rows: Rows) -> None:
        if not rows:
            return
        ends = [
            np.array([*self._eos_token_ids, *seq.request.sampling.stop_token_ids], np.int64)
            for _, seq in rows
        ]
        known = [token_ids[token_ids < logits.vocab_size] for token_ids in ends]
        logits.fill(logits.places(rows, known), -torch.inf)

    def _penalize(self, logits: FlatLogits, rows: Rows) -> None:
        """Repetition first: it scales, the others subtract."""
        if not rows:
            return
        histories = [self._history(seq) for _, seq in rows]
        all_ids = [each.all_token_ids for each in histories]
        places = logits.places(rows, all_ids)
        factors = logits.repeat([s.request.sampling.repetition_penalty for _, s in rows], all_ids)
        old = logits.get(places)
        logits.set(places, torch.where(old > 0, old / factors, old * factors))
        output_ids = [each.output_token_ids for each in histories]
        places = logits.places(rows, output_ids)
        presence = logits.repeat([s.request.sampling.presence_penalty for _, s in rows], output_ids)
        frequency = logits.repeat(
            [s.request.sampling.frequency_penalty for _, s in rows], output_ids
        )
        counts = logits.tensor(np.concatenate([each.output_counts for each in histories]))
        logits.set(places, logits.get(places) - frequency * counts - presence)

    def _history(self, seq: Sequence) -> TokenHistory:
        history = self._histories.get(seq)
        if history is None:
            history = self._histories[seq] = TokenHistory(seq.request.prompt_token_ids)
        history.follow(seq.output_token_ids)
        return history


class FlatLogits:
    """Logits addressed by lists of tokens of unlike lengths, one for each of some rows."""

    def __init__(self, logits_SV: torch.Tensor) -> None:
        self._logits = logits_SV.view(-1)
        self.vocab_size = logits_SV.shape[1]

    def places(self, rows: Rows, token_ids: list[IntArray]) -> torch.Tensor:
        starts = [row * self.vocab_size for row, _ in rows]
        return self.tensor(np.concatenate(list(map(np.add, starts, token_ids))))

    def repeat(self, values: list[float], token_ids: list[IntArray]) -> torch.Tensor:
        """A row's value for each of its tokens."""
        lengths = [len(each) for each in token_ids]
        return self.tensor(np.repeat(np.array(values, np.float32), lengths))

    def tensor(self, values: IntArray | FloatArray) -> torch.Tensor:
        return upload(values, self._logits.device)

    def get(self, places: torch.Tensor) -> torch.Tensor:
        return self._logits[places]

    def set(self, places: torch.Tensor, logits: torch.Tensor) -> None:
        """A place may be named twice, if with one logit."""
        self._logits.index_put_((places,), logits)

    def fill(self, places: torch.Tensor, logit: float) -> None:
        self._logits.index_fill_(0, places, logit)
