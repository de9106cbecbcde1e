from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pdray.core.step_time import StepTime, StepWork
from pdray.core.step_time_fit import StepTimeFit
from tests.fitted import random_work

TRUTH = StepTime(
    base_s=0.03, prefill_token_s=0.0013, prefill_pair_s=1e-7, decode_s=0.002, context_token_s=2e-6
)
GPU = StepTime(
    base_s=0.0037,
    prefill_token_s=2e-5,
    prefill_pair_s=2e-9,
    decode_s=1e-5,
    context_token_s=3e-8,
    prefill_base_s=0.02,
)
"""Decodes are repeated from recordings."""


def measure(
    fit: StepTimeFit, truth: StepTime, num_steps: int, *, noise: float = 0.05, stalls: float = 0.0
) -> None:
    rng = random.Random(3)
    for index in range(num_steps):
        work = random_work(rng, has_prompts=index % 3 == 0)
        factor = 4.0 if rng.random() < stalls else rng.lognormvariate(0.0, noise)
        fit.add(work, truth.step_s(work) * factor)


def worst_error(fit: StepTimeFit, truth: StepTime) -> float:
    rng = random.Random(4)
    works = [random_work(rng, has_prompts=index % 2 == 0) for index in range(200)]
    assert fit.step_time is not None
    return max(abs(fit.step_time.step_s(work) / truth.step_s(work) - 1) for work in works)


@pytest.mark.parametrize("truth", [TRUTH, GPU])
def test_noisy_steps_are_foretold_within_a_tenth(truth: StepTime) -> None:
    fit = StepTimeFit(records_decodes=truth is GPU)
    measure(fit, truth, 600)
    assert worst_error(fit, truth) < 0.1


def test_no_part_is_negative_whatever_is_measured() -> None:
    rng = random.Random(5)
    fit = StepTimeFit()
    for index in range(300):
        fit.add(random_work(rng, has_prompts=index % 2 == 0), rng.uniform(0.001, 1.0))
    assert fit.step_time is not None
    assert min(vars_of(fit.step_time)) >= 0.0


def vars_of(step_time: StepTime) -> list[float]:
    return [getattr(step_time, name) for name in StepTime.__slots__]


def test_a_stall_now_and_then_changes_nothing() -> None:
    fit = StepTimeFit()
    measure(fit, TRUTH, 600, stalls=0.05)
    assert worst_error(fit, TRUTH) < 0.1


def test_first_steps_of_each_kind_say_nothing() -> None:
    fit = StepTimeFit()
    decode, prompt = StepWork(num_decodes=1, num_context_tokens=9), StepWork().with_chunk(0, 64)
    for work in (decode, prompt):
        for _ in range(3):
            fit.add(work, 5.0)
    assert fit.step_time is None
    assert not fit.knows(prompts=True)
    measure(fit, TRUTH, 300)
    assert worst_error(fit, TRUTH) < 0.1


def test_what_is_known_of_one_kind_is_not_known_of_the_other() -> None:
    fit = StepTimeFit()
    for index in range(20):
        fit.add(StepWork(num_decodes=2, num_context_tokens=100 + index), 0.04)
    assert fit.knows(prompts=False)
    assert not fit.knows(prompts=True)


@pytest.mark.parametrize("factor", [3.0, 0.3])
def test_a_machine_that_has_changed_is_believed_after_some_steps(factor: float) -> None:
    fit = StepTimeFit()
    measure(fit, TRUTH, 400)
    changed = StepTime(**{name: getattr(TRUTH, name) * factor for name in StepTime.__slots__})
    measure(fit, changed, 300)
    assert worst_error(fit, changed) < 0.15


def test_what_a_decode_costs_is_known_while_as_many_decode_for_long() -> None:
    """Else a third of them seems to cost as much as the first two, and gets no seat."""
    truth = replace(TRUTH, base_s=0.035, decode_s=0.006)
    rng = random.Random(0)
    fit = StepTimeFit()
    prompts = [StepWork().with_chunk(start, length) for start, length in ((0, 500), (512, 500))]
    long = [StepWork().with_decode(1000 + index) for index in range(24)]
    short = [StepWork().with_decode(200 + index) for index in range(24)]
    pairs = [StepWork().with_decode(index).with_decode(index) for index in range(200, 500)]
    for work in [*[*prompts, *long, StepWork().with_chunk(0, 200), *short] * 3, *pairs]:
        fit.add(work, truth.step_s(work) * rng.lognormvariate(0.0, 0.03))
    work = StepWork(num_decodes=4, num_context_tokens=1400)
    assert fit.step_time is not None
    assert fit.step_time.step_s(work) == pytest.approx(truth.step_s(work), rel=0.1)


def test_slow_change_is_followed() -> None:
    fit = StepTimeFit()
    measure(fit, TRUTH, 400)
    slower = replace(TRUTH, base_s=0.04, decode_s=0.0028)
    measure(fit, slower, 1500)
    assert worst_error(fit, slower) < 0.1


def test_prompts_are_not_forgotten_while_there_are_none() -> None:
    fit = StepTimeFit()
    measure(fit, TRUTH, 400)
    for index in range(5000):
        work = StepWork(num_decodes=1 + index % 8, num_context_tokens=500 + index % 700)
        fit.add(work, TRUTH.step_s(work))
    work = StepWork(num_decodes=2, num_context_tokens=500).with_chunk(100, 200)
    assert fit.step_time is not None
    assert fit.step_time.step_s(work) == pytest.approx(TRUTH.step_s(work), rel=0.1)


def test_the_high_ratio_covers_most_steps_and_is_never_below_one() -> None:
    assert StepTimeFit().high_ratio == 1.0
    fit = StepTimeFit()
    measure(fit, TRUTH, 1000, noise=0.1)
    assert 1.08 < fit.high_ratio < 1.35
