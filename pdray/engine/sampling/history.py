"""Which tokens a sequence has, as arrays: what penalties look at."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class TokenHistory:
    """The prompt's tokens, each once, and the output's with how often each came.

    Follows a sequence, which never takes a token back: a step costs what it added.
    """

    def __init__(self, prompt_token_ids: Tokens[int]) -> None:
        self._prompt_token_ids: IntArray = np.unique(np.array(prompt_token_ids, np.int64))
        self._num_outputs = 0
        self._places: dict[int, int] = {}
        self._token_ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def follow(self, output_token_ids: Tokens[int]) -> None:
        for token_id in output_token_ids[self._num_outputs :]:
            place = self._places.setdefault(token_id, len(self._places))
            if place == len(self._token_ids):
                self._token_ids = np.pad(self._token_ids, (0, place))
                self._counts = np.pad(self._counts, (0, place))
            self._token_ids[place] = token_id
            self._counts[place] += 1.0
        self._num_outputs = len(output_token_ids)

    @property
    def all_token_ids(self) -> IntArray:
        """Those of the output that the prompt has too come twice."""
        return np.concatenate([self._prompt_token_ids, self.output_token_ids])

    @property
    def output_token_ids(self) -> IntArray:
        return self._token_ids[: len(self._places)]

    @property
    def output_counts(self) -> FloatArray:
        return self._counts[: len(self._places)]
