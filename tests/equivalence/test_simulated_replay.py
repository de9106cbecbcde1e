"""What the simulator tells its control plane, told to another: every decision is the same."""

from __future__ import annotations

import random

import pytest

from pdray.core.mode import Mode
from pdray.event_log.checkpoint import dump, restore
from pdray.event_log.entry import decode, encode
from pdray.event_log.replay import tell
from pdray.policy.placement import PLACEMENT
from pdray.simulation.simulator import Simulator
from tests.simulated import request_of, scenario_of


@pytest.mark.parametrize("placement", PLACEMENT.names())
@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.POOLED, Mode.AUTO])
def test_a_simulated_run_is_decided_again_as_it_was(placement: str, mode: Mode) -> None:
    rng = random.Random(0)
    requests = [
        request_of(0.02 * number, rng.randrange(10, 1500), rng.randrange(1, 40), [rng.randrange(3)])
        for number in range(150)
    ]
    counts = {"prefill": 2, "decode": 2} if mode is Mode.POOLED else {"mixed": 3}
    scenario = scenario_of(
        requests, counts, mode=mode, placement=placement, worker={"num_blocks": 300}, max_queued=20
    )
    lines: list[bytes] = []
    simulator = Simulator(scenario, journal=lambda told: lines.append(encode(told)))
    checkpoint = dump(simulator.control)
    result = simulator.run()
    simulator.control.check_integrity()
    assert result.num_complete
    assert len(result.outcomes) == len(requests)
    again = tell(restore(checkpoint), (decode(line) for line in lines))
    for entry, told in again:
        assert encode(told) == entry.line
