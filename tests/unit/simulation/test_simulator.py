"""Tiny scenarios, worked out by hand."""

from __future__ import annotations

import pytest

from pdray.core.mode import Mode
from pdray.core.slo import Slo
from pdray.simulation.simulator import simulate
from tests.simulated import request_of, scenario_of

NO_ITL = Slo(ttft_s=1.0, itl_s=10.0, percentile=0.9)


def test_two_requests_on_one_worker_take_the_steps_that_they_should() -> None:
    requests = [request_of(0.0, 100, 3), request_of(0.005, 50, 2)]
    result = simulate(scenario_of(requests, {"mixed": 1}, mode=Mode.SOFT, slo=NO_ITL))
    first_s = 0.01 + 100e-4  # the first prompt alone
    second_s = 0.01 + 0.002 + 101e-6 + 50e-4  # its second token, and the other's prompt
    third_s = 0.01 + 2 * 0.002 + (102 + 51) * 1e-6  # a token of each
    long, short = sorted(result.outcomes, key=lambda each: each.arrived_at)
    assert long.ttft_s == pytest.approx(first_s)
    assert short.ttft_s == pytest.approx(first_s + second_s - 0.005)
    assert long.finished_at == pytest.approx(first_s + second_s + third_s)
    assert short.finished_at == pytest.approx(first_s + second_s + third_s)
    assert long.tpot_s == pytest.approx((second_s + third_s) / 2)
    assert result.itl_s is not None
    assert result.itl_s.count == 3
    assert result.itl_s.max == pytest.approx(second_s, rel=0.005)
    assert result.slo_attainment == 1.0


def test_a_handoff_takes_the_read_of_what_was_computed_last() -> None:
    result = simulate(scenario_of([request_of(0.0, 600, 3)], {"prefill": 1, "decode": 1}))
    (outcome,) = result.outcomes
    ttft_s = (0.01 + 512e-4) + (0.01 + 88e-4)  # chunks of 512 and 88 tokens
    read_s = 0.001 + 88e-5  # of the second chunk: the first was read meanwhile
    steps_s = 2 * (0.01 + 0.002) + (601 + 602) * 1e-6
    assert outcome.ttft_s == pytest.approx(ttft_s)
    assert outcome.finished_at == pytest.approx(ttft_s + read_s + steps_s)
    assert result.num_placed_by_how["disaggregated"] == 1


def test_gaps_over_the_target_are_counted_one_by_one() -> None:
    slow = Slo(ttft_s=1.0, itl_s=0.0121005, percentile=0.9)
    result = simulate(scenario_of([request_of(0.0, 99, 8)], {"mixed": 1}, mode=Mode.SOFT, slo=slow))
    (outcome,) = result.outcomes
    # The steps attend to 100, 101, ... tokens: the first is in time, the others are not.
    assert outcome.num_gaps == 7
    assert outcome.num_late_gaps == 6
    assert not outcome.meets(slow)


def test_a_prompt_that_nobody_can_hold_is_refused() -> None:
    result = simulate(scenario_of([request_of(0.0, 5000, 3)], {"mixed": 1}, mode=Mode.SOFT))
    (outcome,) = result.outcomes
    assert outcome.refusal is not None
    assert "more than any worker could hold" in outcome.refusal
    assert result.slo_attainment == 0.0


def test_a_prefix_that_is_here_is_not_computed_again() -> None:
    requests = [request_of(0.0, 1100, 2, [7, 8]), request_of(10.0, 1100, 2, [7, 8])]
    result = simulate(scenario_of(requests, {"mixed": 1}, mode=Mode.SOFT, slo=NO_ITL))
    cold, warm = (each.ttft_s for each in result.outcomes)
    assert cold == pytest.approx(3 * 0.01 + 1100e-4)
    assert warm == pytest.approx(0.01 + (1100 - 2 * 512) * 1e-4)
