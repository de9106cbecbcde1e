"""Whole days of requests, and the simulated clusters that they come to."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.coupled_ratio import CoupledRatio
from benchmarks.serve_autoscaler import ServeAutoscaler
from pdray.config_yaml import read_yaml
from pdray.core.slo import Slo
from pdray.scaling_config import AutoscalingConfig
from pdray.simulation.profile import Profile, parse_profile
from pdray.simulation.replay import PoolUnderPolicy, control_of, pools_of, replay_scenario
from pdray.simulation.result import SimulationResult
from pdray.simulation.scaler import FixedCounts, Scaler
from pdray.simulation.scenario import Scenario
from pdray.simulation.simulator import simulate
from pdray.workload.day import DAY_S, Day, day_of, two_bursts
from pdray.workload.request import WorkloadRequest
from pdray.workload.trace import read_trace, scale_trace

PROFILES = Path(__file__).parent / "profiles"
MAX_REPLICAS = 16
EVERY_S = 4.0
"""Workers tell of themselves and are scaled so often: most of a day would be that, if it were 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``mean_rps``: such that a few workers of each pool are enough at noon; longer prompts than
    ``max_prompt_tokens`` are cut."""

    name: str
    trace: str
    profile: str
    mean_rps: float
    slo: Slo
    max_prompt_tokens: int = 10**9


CASES = {
    case.name: case
    for case in (
        Case(
            name="mooncake-h100",
            trace="mooncake_conversation.jsonl",
            profile="llama-70b-h100.yaml",
            mean_rps=0.35,
            slo=Slo(ttft_s=20.0, itl_s=0.05, percentile=0.9),
        ),
        Case(
            name="azure-conv-cpu",
            trace="azure_2023_conv.csv",
            profile="gemma-270m-cpu.yaml",
            mean_rps=0.8,
            slo=Slo(ttft_s=5.0, itl_s=0.1, percentile=0.9),
            max_prompt_tokens=3000,
        ),
    )
}


class DayRuns:
    """Simulations of one day, each by another way to scale."""

    def __init__(self, case: Case, traces: Path, seed: int, duration_s: float = DAY_S) -> None:
        self.case = case
        self.seed = seed
        self.profile: Profile = _profile(case.profile)
        self.pools = pools_of(self.profile)
        rng = random.Random(seed)
        self.day = Day(mean_rps=case.mean_rps, bursts=two_bursts(rng), duration_s=duration_s)
        trace = scale_trace(
            read_trace(traces / case.trace), max_prompt_tokens=case.max_prompt_tokens
        )
        self.requests: list[WorkloadRequest] = list(day_of(trace, self.day, rng))

    def under_policies(self, policies: Mapping[str, AutoscalingConfig]) -> SimulationResult:
        """By pool."""
        return simulate(self._scenario(policies))

    def under_serve(self, configs: Mapping[str, Mapping[str, Any]]) -> SimulationResult:
        """Ray Serve's algorithm, with what ``configs`` say of each pool and its defaults else."""
        from ray.serve.config import AutoscalingConfig as ServeConfig

        made = {
            name: ServeConfig(min_replicas=1, max_replicas=MAX_REPLICAS, **config)
            for name, config in configs.items()
        }
        return self._scaled_by(ServeAutoscaler(made), dict.fromkeys(self.pools, 1))

    def fixed(self, counts: Mapping[str, int]) -> SimulationResult:
        return self._scaled_by(FixedCounts(counts), counts)

    def coupled(
        self, ratio: Mapping[str, int], policies: Mapping[str, AutoscalingConfig]
    ) -> SimulationResult:
        startup_s = {
            name: sum(each.startup_s) / len(each.startup_s)
            for name, each in ((each.pool, each) for each in self.profile.workers)
        }
        scaler = CoupledRatio(ratio, startup_s)
        return simulate(replace(self._scenario(policies), scaler=scaler))

    def _scaled_by(self, scaler: Scaler, counts: Mapping[str, int]) -> SimulationResult:
        scenario = self._scenario({}, counts)
        control = replace(scenario.control, scaling=None)
        return simulate(replace(scenario, scaler=scaler, control=control))

    def _scenario(
        self,
        policies: Mapping[str, AutoscalingConfig],
        counts: Mapping[str, int] | None = None,
    ) -> Scenario:
        slo = self.case.slo
        under = [
            PoolUnderPolicy(
                name=name,
                role=role,
                node_groups=groups,
                policy=policies[name].policy(role, slo) if name in policies else None,
                num_workers=(counts or {}).get(name, 1),
            )
            for name, (role, groups) in self.pools.items()
        ]
        return replay_scenario(
            self.profile,
            control_of(under, self.profile, slo),
            self.requests,
            seed=self.seed,
            duration_s=self.day.duration_s,
            every_s=EVERY_S,
        )


def _profile(name: str) -> Profile:
    path = PROFILES / name
    return parse_profile(read_yaml(path), str(path))
