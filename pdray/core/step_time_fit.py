"""Step times as they are measured become step times to come: the fit of one engine.

Least squares of relative errors, none of the parts negative, the last few hundred steps counting
most. First steps of a kind are slow (kernels compile, memory is touched first) and say nothing;
one that takes much longer than foretold (something else had the core) says nothing either, but
several of them in a row do: the machine has changed.
"""

from __future__ import annotations

import bisect
from collections import deque

from pdray.core.least_squares import solve_nonnegative
from pdray.core.step_time import StepTime, StepWork

_FORGETTING = 0.995
_NUM_COLD = 3
_NUM_KNOWN = 8
_MAX_SURPRISE = 1.6
_NUM_BELIEVED = 8
_NUM_RATIOS = 256
_HIGH_PERCENTILE = 0.99
# How strongly a part stays what it was, where steps tell nothing else: the parts that every step
# has, and every one with prompts, most of all, so that what always comes with them is the others',
# which is the careful guess for whoever wants to add more of these.
_STAY = (1e-3, 1e-7, 1e-5, 1e-6, 1e-5, 1e-3)
_NUM_PARTS = len(_STAY)

_Row = tuple[float, float, float, float, float, float]


class StepTimeFit:
    """``add`` every step, in order; costs some microseconds."""

    def __init__(self, *, records_decodes: bool = False) -> None:
        """``records_decodes``: steps of decodes alone are repeated from recordings, and so cost
        less than what all others do whatever is in them."""
        self._records_decodes = records_decodes
        self._parts = [0.0] * _NUM_PARTS
        self._products = [[0.0] * _NUM_PARTS for _ in range(_NUM_PARTS)]
        self._targets = [0.0] * _NUM_PARTS
        self._num_steps = {True: 0, False: 0}
        self._surprising: list[tuple[_Row, float]] = []
        self._ratios: deque[float] = deque()
        self._sorted_ratios: list[float] = []
        self.step_time: StepTime | None = None
        """None before anything is known."""

    def knows(self, *, prompts: bool) -> bool:
        """Whether it has seen enough steps with prompts in them, or of decodes alone."""
        return self._num_steps[prompts] >= _NUM_COLD + _NUM_KNOWN

    @property
    def high_ratio(self) -> float:
        """Nearly all steps take at most so many times what was foretold of them; at least 1."""
        if not self._sorted_ratios:
            return 1.0
        index = int(_HIGH_PERCENTILE * (len(self._sorted_ratios) - 1))
        return max(self._sorted_ratios[index], 1.0)

    def add(self, work: StepWork, step_s: float) -> float | None:
        """A step with this work in it took so long. Returns how long it should have taken, as far
        as was known."""
        foretold_s = None if self.step_time is None else self.step_time.step_s(work)
        self._learn(work, step_s, foretold_s)
        return foretold_s

    def _learn(self, work: StepWork, step_s: float, foretold_s: float | None) -> None:
        has_prompts = work.num_prefill_tokens > 0
        self._num_steps[has_prompts] += 1
        if self._num_steps[has_prompts] <= _NUM_COLD or step_s <= 0.0:
            return
        row = self._row_of(work)
        if foretold_s is not None and self.knows(prompts=has_prompts):
            ratio = step_s / foretold_s
            if not 1 / _MAX_SURPRISE <= ratio <= _MAX_SURPRISE:
                self._add_surprising(row, step_s)
                return
            self._add_ratio(ratio)
        self._surprising.clear()
        self._take(row, step_s)

    def _add_surprising(self, row: _Row, step_s: float) -> None:
        self._surprising.append((row, step_s))
        if len(self._surprising) < _NUM_BELIEVED:
            return
        for products in self._products:
            products[:] = [0.0] * _NUM_PARTS
        self._targets[:] = [0.0] * _NUM_PARTS
        self._ratios.clear()
        self._sorted_ratios.clear()
        for each_row, each_s in self._surprising:
            self._take(each_row, each_s)
        self._surprising.clear()

    def _add_ratio(self, ratio: float) -> None:
        self._ratios.append(ratio)
        bisect.insort(self._sorted_ratios, ratio)
        if len(self._ratios) > _NUM_RATIOS:
            oldest = self._ratios.popleft()
            del self._sorted_ratios[bisect.bisect_left(self._sorted_ratios, oldest)]

    def _take(self, row: _Row, step_s: float) -> None:
        weight = 1.0 / (step_s * step_s)
        for i, x in enumerate(row):
            products = self._products[i]
            for j, y in enumerate(row):
                products[j] = products[j] * _FORGETTING + x * y * weight
            self._targets[i] = self._targets[i] * _FORGETTING + x / step_s
        self._solve()

    def _solve(self) -> None:
        # All parts at once: one after the other they would take thousands of steps to come apart
        # where nearly all steps have as many decodes.
        parts = solve_nonnegative(self._products, self._targets, self._parts, _STAY)
        self._parts = parts
        self.step_time = StepTime(
            base_s=parts[0],
            prefill_token_s=parts[1],
            prefill_pair_s=parts[2],
            decode_s=parts[3],
            context_token_s=parts[4],
            prefill_base_s=parts[5],
        )

    def _row_of(self, work: StepWork) -> _Row:
        return (
            1.0,
            float(work.num_prefill_tokens),
            float(work.num_prefill_pairs),
            float(work.num_decodes),
            float(work.num_context_tokens),
            float(self._records_decodes and work.num_prefill_tokens > 0),
        )
