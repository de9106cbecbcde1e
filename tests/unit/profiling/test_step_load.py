"""Steps are timed with what was really in them."""

from __future__ import annotations

import random
from pathlib import Path

from pdray.core.step_time import StepWork
from pdray.core.step_time_fit import StepTimeFit
from pdray.engine.engine import Engine
from pdray.profiling.step_load import MIN_STEPS, Load, time_steps
from tests.engine_driver import engine_config


class Witness(StepTimeFit):
    """Remembers what the engine says of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[StepWork] = []

    def add(self, work: StepWork, step_s: float) -> float | None:
        self.works.append(work)
        return super().add(work, step_s)


def test_what_was_in_a_step_is_what_the_engine_says(tiny_model_path: Path) -> None:
    engine = Engine.load(tiny_model_path, engine_config(max_tokens_per_step=96, max_batch_size=8))
    witness = engine._fit = Witness()
    load = Load(engine, random.Random(1))
    found = []
    for number in range(150):
        if number % 20 == 0 or load.is_empty:
            load.add_batch()
        found.append(load.take(engine.step()))
    assert found == witness.works
    assert {work.num_prefill_tokens > 0 for work in found} == {True, False}
    assert max(work.num_decodes for work in found) > 3


def test_all_parts_of_a_steps_time_are_found(tiny_model_path: Path) -> None:
    engine = Engine.load(tiny_model_path, engine_config(max_tokens_per_step=96, max_batch_size=8))
    steps = time_steps(engine, 0.0, random.Random(0))
    assert steps.num_steps == MIN_STEPS
    assert steps.high_ratio >= 1.0
    assert steps.step_time.step_s(StepWork(num_decodes=1, num_context_tokens=100)) > 0.0
    assert steps.step_time.step_s(StepWork().with_chunk(0, 96)) > 0.0
