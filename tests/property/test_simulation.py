"""Whatever comes and however pools change: each request ends once, and every block comes back."""

from __future__ import annotations

import random
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.core.mode import Mode
from pdray.core.slo import Slo
from pdray.simulation.scaler import ScalingView
from pdray.simulation.simulator import Simulator, simulate
from pdray.workload.request import WorkloadRequest
from tests.simulated import SLO, request_of, scenario_of


class Restless:
    """Wants another number of workers every so often, now and then none."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def look(self, view: ScalingView, now: float) -> Mapping[str, int]:
        if self._rng.random() < 0.7:
            return {}
        return {pool: self._rng.randrange(4) for pool in view.pools}


def workload(seed: int, count: int, rate_rps: float) -> list[WorkloadRequest]:
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate_rps)
        num_tokens = rng.choice([rng.randrange(1, 60), rng.randrange(500, 1500)])
        prefix_ids = (rng.randrange(2), 2 + rng.randrange(3))
        found.append(request_of(at, num_tokens, rng.randrange(1, 200), prefix_ids))
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from([Mode.SOFT, Mode.POOLED, Mode.AUTO]),
    is_restless=st.booleans(),
    rate_rps=st.sampled_from([1.0, 20.0]),
    num_blocks=st.integers(110, 400),
    itl_s=st.sampled_from([0.015, 1.0]),
)
def test_each_request_ends_once_and_every_block_comes_back(
    seed: int, mode: Mode, is_restless: bool, rate_rps: float, num_blocks: int, itl_s: float
) -> None:
    requests = workload(seed, 40, rate_rps)
    scenario = scenario_of(
        requests,
        {"prefill": 1, "decode": 2} if mode is Mode.POOLED else {"mixed": 2},
        mode=mode,
        slo=Slo(ttft_s=1.0, itl_s=itl_s, percentile=0.9),
        worker={"num_blocks": num_blocks, "max_sequence_tokens": 16 * num_blocks},
        scaler=Restless(seed) if is_restless else None,
        placement="cost",
        patience_s=200.0,
    )
    simulator = Simulator(scenario)
    result = simulator.run()
    assert sorted(each.arrived_at for each in result.outcomes) == [
        request.arrival_s for request in requests
    ]
    lengths = {request.arrival_s: request.output_tokens for request in requests}
    for outcome in result.outcomes:
        assert (outcome.finished_at is None) == (outcome.refusal is not None)
        if outcome.finished_at is not None:
            assert outcome.num_output_tokens == lengths[outcome.arrived_at]
            assert outcome.first_token_at is not None
            assert outcome.arrived_at < outcome.first_token_at <= outcome.finished_at
        else:
            assert outcome.refusal != "not finished"
    gaps = sum(each.num_gaps for each in result.outcomes)
    assert gaps == (0 if result.itl_s is None else result.itl_s.count)
    assert simulator.control.num_in_flight == 0
    simulator.control.check_integrity()
    for worker in simulator.workers.values():
        worker.check_integrity()
        assert worker.blocks.num_held == 0
        assert worker.num_requests == 0


def test_the_same_seed_gives_the_same_result() -> None:
    def once(seed: int) -> object:
        scenario = scenario_of(
            workload(1, 60, 10.0),
            {"prefill": 1, "decode": 2},
            scaler=Restless(2),
            seed=seed,
            placement="power_of_two",
            worker={"startup_s": (1.0, 2.0, 3.0)},
        )
        return simulate(scenario)

    assert once(5) == once(5)
    assert once(5) != once(6)


def test_more_workers_keep_the_slo_for_more_requests() -> None:
    requests = workload(3, 200, 12.0)
    found = [
        simulate(scenario_of(requests, {"prefill": num, "decode": num}, slo=SLO)).num_good
        for num in (1, 2, 4)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]
