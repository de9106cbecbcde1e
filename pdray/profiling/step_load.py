"""Steps of every kind, timed: batches of all sizes, contexts of all lengths, prompts beside."""

from __future__ import annotations

import itertools
import math
import random
import time
from dataclasses import dataclass

from pdray.core.request import Request, SamplingParams
from pdray.core.step_time import StepTime, StepWork
from pdray.core.step_time_fit import StepTimeFit
from pdray.engine.engine import Engine
from pdray.engine.outputs import StepOutput
from pdray.engine.sequence import Sequence

MIN_STEPS = 60
_STEPS_PER_BATCH = 25
"""Before there is another one: with prompts at first, and of decodes alone then."""
_PROMPT_STEPS = 10
"""That a batch's prompts take at most."""
_MIN_PROMPT_TOKENS = 16
_MAX_OUTPUT_TOKENS = 64
_FILLED = 0.8
"""Of the KV blocks: nobody is to be preempted, as its tokens would be computed twice."""
_VOCABULARY = 100
"""Ids that every model has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSteps:
    step_time: StepTime
    high_ratio: float
    num_steps: int


def time_steps(engine: Engine, seconds: float, rng: random.Random) -> TimedSteps:
    """For so long, and for MIN_STEPS at least."""
    load = Load(engine, rng)
    steps: list[tuple[StepWork, float]] = []
    end_at = time.perf_counter() + seconds
    while len(steps) < MIN_STEPS or time.perf_counter() < end_at:
        if len(steps) % _STEPS_PER_BATCH == 0 or load.is_empty:
            load.add_batch()
        output = engine.step()
        steps.append((load.take(output), output.step_s))
    fit = StepTimeFit(records_decodes=engine.records_decodes)
    # The first ones are slow, and the fit leaves out the first that it sees of each kind.
    cold, warm = steps[: MIN_STEPS // 10], steps[MIN_STEPS // 10 :]
    rng.shuffle(warm)
    for work, step_s in cold + warm:
        fit.add(work, step_s)
    assert fit.step_time is not None, "it has seen steps"
    return TimedSteps(step_time=fit.step_time, high_ratio=fit.high_ratio, num_steps=len(steps))


class Load:
    """Batches of sequences of random lengths."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self._engine = engine
        self._rng = rng
        self._ids = map(str, itertools.count())
        self._num_computed: dict[Sequence, int] = {}

    @property
    def is_empty(self) -> bool:
        return not self._num_computed

    def add_batch(self) -> None:
        """To those who still decode: small ones as often as large ones, of short prompts as often
        as of long ones."""
        size = self._log_uniform(1, self._engine.config.max_batch_size)
        longest = max(self._engine.max_sequence_tokens - _MAX_OUTPUT_TOKENS, _MIN_PROMPT_TOKENS)
        longest = self._log_uniform(_MIN_PROMPT_TOKENS, longest)
        left_tokens = _PROMPT_STEPS * self._engine.config.max_tokens_per_step
        while len(self._num_computed) < size and left_tokens > 0:
            seq = self._sequence(min(longest, left_tokens))
            if self._held_tokens() + self._final_tokens(seq) > self._room_tokens():
                if self._num_computed:
                    return
                seq = self._sequence(_MIN_PROMPT_TOKENS)
            left_tokens -= seq.num_prefill_tokens
            self._num_computed[seq] = 0
            self._engine.add(seq)

    def take(self, output: StepOutput) -> StepWork:
        """What was in the step."""
        work = StepWork()
        for each in output.sequences:
            seq, before = each.sequence, self._num_computed[each.sequence]
            num_tokens = each.num_computed_tokens - before
            # The last token of a prompt alone is planned as a decode is.
            if before >= seq.num_prefill_tokens - 1:
                work = work.with_decode(each.num_computed_tokens)
            else:
                work = work.with_chunk(before, num_tokens)
            self._num_computed[seq] = each.num_computed_tokens
            if each.has_ended:
                del self._num_computed[seq]
        return work

    def _log_uniform(self, least: int, most: int) -> int:
        return round(math.exp(self._rng.uniform(math.log(least), math.log(most))))

    def _sequence(self, longest: int) -> Sequence:
        least = min(_MIN_PROMPT_TOKENS, longest)
        num_tokens = self._log_uniform(least, longest)
        request = Request(
            request_id=next(self._ids),
            prompt_token_ids=tuple(self._rng.randrange(_VOCABULARY) for _ in range(num_tokens)),
            output_token_ids=(),
            sampling=SamplingParams(
                max_tokens=self._rng.randint(2, _MAX_OUTPUT_TOKENS),
                temperature=0.0,
                top_k=None,
                top_p=1.0,
                seed=0,
                stop_token_ids=(),
                ignore_eos=True,
            ),
        )
        return Sequence.from_request(request, 1, is_lent=False)

    def _held_tokens(self) -> int:
        return sum(map(self._final_tokens, self._num_computed))

    def _final_tokens(self, seq: Sequence) -> int:
        """Whole blocks."""
        size = self._engine.config.block_size
        num_tokens = seq.num_prefill_tokens + seq.request.sampling.max_tokens
        return -(-num_tokens // size) * size

    def _room_tokens(self) -> int:
        num_blocks = self._engine.pool.num_blocks // len(self._engine.layout.groups)
        return int(_FILLED * num_blocks) * self._engine.config.block_size
