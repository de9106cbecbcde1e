"""Fits that know how long steps take, as if they had measured some."""

from __future__ import annotations

import random

from pdray.core.step_time import StepTime, StepWork
from pdray.core.step_time_fit import StepTimeFit


def fit_of(step_time: StepTime, num_steps: int = 600) -> StepTimeFit:
    """After so many steps, half of them with a prompt, that took just what they should."""
    rng = random.Random(0)
    fit = StepTimeFit()
    for index in range(num_steps):
        work = random_work(rng, has_prompts=index % 2 == 1)
        fit.add(work, step_time.step_s(work))
    return fit


def random_work(rng: random.Random, *, has_prompts: bool) -> StepWork:
    num_decodes = rng.randrange(not has_prompts, 9)
    work = StepWork(
        num_decodes=num_decodes, num_context_tokens=num_decodes * rng.randrange(16, 2000)
    )
    return work.with_chunk(rng.randrange(2000), rng.randrange(1, 513)) if has_prompts else work
