"""What goes with a worker's first token: how long ago it began."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from pdray.core.clock import ManualClock
from pdray.core.request import PhaseAges
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sequence import Sequence
from pdray.metrics.prometheus import WorkerMetrics
from pdray.worker.phase_times import PhaseTimes
from tests.local_cluster import request_of


def step_of(sequence: Sequence, *token_ids: int) -> SequenceOutput:
    """What the engine says when it has put the tokens into the sequence."""
    output = SequenceOutput(
        sequence=sequence,
        index=len(sequence.output_token_ids),
        token_ids=token_ids,
        finish_reason=None,
        num_computed_tokens=1,
        error=None,
        logprobs=None,
        prompt_logprobs=None,
    )
    sequence.output_token_ids += token_ids
    return output


@pytest.fixture
def times(manual_clock: ManualClock) -> PhaseTimes:
    manual_clock.advance(100.0)
    return PhaseTimes(WorkerMetrics("w", "pool"), manual_clock)


@pytest.mark.parametrize("earlier", [(), (8, 9)], ids=["first attempt", "later attempt"])
def test_a_prompt_began_with_its_first_chunk(
    times: PhaseTimes, manual_clock: ManualClock, earlier: tuple[int, ...]
) -> None:
    request = replace(request_of([5] * 40), output_token_ids=earlier)
    sequence = Sequence.from_request(request, 1, is_lent=True)
    assert times.on_step(step_of(sequence), 100.0) is None
    manual_clock.advance(3.0)
    assert times.on_step(step_of(sequence, 7), 102.0) == PhaseAges(began_s=3.0, ready_s=None)
    assert times.on_step(step_of(sequence, 7), 103.0) is None


def test_a_pulled_sequence_was_ready_before_its_first_step(
    times: PhaseTimes, manual_clock: ManualClock
) -> None:
    sequence = Sequence.from_request(request_of([5] * 40), 1, is_lent=False)
    sequence.arrive(6)
    times.has_arrived(sequence, prefilled_at=99.0)
    manual_clock.advance(4.0)
    assert times.on_step(step_of(sequence, 7), 103.0) == PhaseAges(began_s=1.0, ready_s=4.0)
    assert times.on_step(step_of(sequence, 7), 104.0) is None


def test_of_a_decode_that_has_moved_here_nothing_is_told(times: PhaseTimes) -> None:
    sequence = Sequence.from_request(request_of([5] * 40), 1, is_lent=False)
    sequence.arrive(6, 7)
    assert times.on_step(step_of(sequence, 8), 100.0) is None


def test_one_that_ends_early_is_forgotten(times: PhaseTimes) -> None:
    sequence = Sequence.from_request(request_of([5] * 40), 1, is_lent=True)
    times.on_step(step_of(sequence), 100.0)
    assert len(times._times) == 1
    del sequence
    gc.collect()
    assert len(times._times) == 0
