"""What the simulator tells its control plane, told to another: every decision is the same."""

from __future__ import annotations

import random

import pytest

from pdray.core.mode import Mode
from pdray.event_log.checkpoint import dump, restore
from pdray.event_log.entry import decode, encode
from pdray.event_log.replay import tell
from pdray.policy.placement import PLACEMENT
from pdray.simulation.result import SimulationResult
from pdray.simulation.scenario import Scenario
from pdray.simulation.simulator import Simulator
from pdray.workload.request import WorkloadRequest
from tests.simulated import SLOW, request_of, scaled, scenario_of


def run_twice(scenario: Scenario) -> SimulationResult:
    lines: list[bytes] = []
    simulator = Simulator(scenario, journal=lambda told: lines.append(encode(told)))
    checkpoint = dump(simulator.control)
    result = simulator.run()
    simulator.control.check_integrity()
    for entry, told in tell(restore(checkpoint), (decode(line) for line in lines)):
        assert encode(told) == entry.line
    return result


def crowd(count: int) -> list[WorkloadRequest]:
    rng = random.Random(0)
    return [
        request_of(0.02 * number, rng.randrange(10, 1500), rng.randrange(1, 40), [rng.randrange(3)])
        for number in range(count)
    ]


@pytest.mark.parametrize("placement", PLACEMENT.names())
@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.POOLED, Mode.AUTO])
def test_a_simulated_run_is_decided_again_as_it_was(placement: str, mode: Mode) -> None:
    counts = {"prefill": 2, "decode": 2} if mode is Mode.POOLED else {"mixed": 3}
    worker = {"num_blocks": 300}
    result = run_twice(
        scenario_of(
            crowd(150), counts, mode=mode, placement=placement, worker=worker, max_queued=20
        )
    )
    assert result.num_complete
    assert len(result.outcomes) == 150


def test_scaling_is_decided_again_as_it_was() -> None:
    scenario = scenario_of(crowd(200), {"prefill": 1, "decode": 1}, worker=SLOW, duration_s=60.0)
    result = run_twice(scaled(scenario))
    assert {decision.decision.is_change for decision in result.decisions} == {True}
