"""Profiles and scenarios for tests of the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pdray.control.controller import ControlConfig
from pdray.core.mode import Mode
from pdray.core.slo import Slo
from pdray.core.snapshot import KVSpan, Role
from pdray.core.step_time import StepTime
from pdray.policy.scaling.base import GroupCost, PoolSetup, ScalingSetup
from pdray.simulation.profile import LinkProfile, Profile, WorkerProfile
from pdray.simulation.scaler import ScalingView
from pdray.simulation.scenario import GroupPlan, PoolPlan, Scenario
from pdray.workload.request import WorkloadRequest
from tests.scaling_factories import make_rails, make_scaling_policy

STEP_TIME = StepTime(
    base_s=0.01, prefill_token_s=1e-4, prefill_pair_s=0.0, decode_s=0.002, context_token_s=1e-6
)
SLO = Slo(ttft_s=1.0, itl_s=0.05, percentile=0.9)
ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE, "mixed": Role.MIXED}


def worker_profile(pool: str, **changes: Any) -> WorkerProfile:
    fields: dict[str, Any] = {
        "pool": pool,
        "node_group": "cpu",
        "step_time": STEP_TIME,
        "block_size": 16,
        "num_blocks": 1000,
        "max_batch_size": 8,
        "max_tokens_per_step": 512,
        "max_model_len": 4096,
        "max_sequence_tokens": 4096,
        "kv_spans": (KVSpan(bytes_per_token=1024, window_tokens=None),),
        "dtype": "float32",
        "layout_digest": "layout",
        "model_digest": "model",
        "startup_s": (5.0,),
    }
    return WorkerProfile(**(fields | changes))


def profile_of(*workers: WorkerProfile) -> Profile:
    """0.001 s for each read, and 0.001 s for every 100 tokens."""
    link = LinkProfile(source="cpu", target="cpu", latency_s=0.001, bytes_per_s=1.024e8)
    return Profile(model="tiny", workers=workers, links=(link,))


def scenario_of(
    requests: Iterable[WorkloadRequest],
    counts: dict[str, int],
    *,
    mode: Mode = Mode.POOLED,
    slo: Slo = SLO,
    worker: dict[str, Any] | None = None,
    max_queued: int = 1000,
    **changes: Any,
) -> Scenario:
    """Pools by name, prefill, decode or mixed, with so many workers from the start."""
    workers = [worker_profile(pool, **(worker or {})) for pool in counts]
    fields: dict[str, Any] = {
        "profile": profile_of(*workers),
        "pools": tuple(
            PoolPlan(
                name=pool,
                role=ROLES[pool],
                groups=(GroupPlan(node_group="cpu"),),
                num_workers=count,
            )
            for pool, count in counts.items()
        ),
        "requests": requests,
        "slo": slo,
        "control": ControlConfig(
            max_queued_requests=max_queued, queue_timeout_s=60.0, mode=mode, slo=slo
        ),
        "placement": "least_loaded",
    }
    return Scenario(**(fields | changes))


def request_of(
    arrival_s: float, prompt_tokens: int, output_tokens: int, prefix_ids: Sequence[int] = ()
) -> WorkloadRequest:
    return WorkloadRequest(
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefix_ids=tuple(prefix_ids),
    )


class Plan:
    """A scaler that wants numbers by the time; it remembers what it saw."""

    def __init__(self, wanted: Mapping[float, Mapping[str, int]]) -> None:
        self._wanted = wanted
        self.views: list[tuple[float, ScalingView]] = []

    def look(self, view: ScalingView, now: float) -> Mapping[str, int]:
        self.views.append((now, view))
        return self._wanted[max(at for at in self._wanted if at <= now)]


SLOW = {"step_time": replace(STEP_TIME, prefill_token_s=4e-4), "startup_s": (2.0,)}
"""Prompts of 400 tokens take 0.17 s."""


def scaled(scenario: Scenario) -> Scenario:
    """With a quick policy for each pool, of one to four workers."""
    rails = make_rails(max_replicas=4, downscale_delay_s=10.0)
    pools = tuple(
        PoolSetup(
            name=plan.name,
            role=plan.role,
            node_groups=("cpu",),
            replicas=plan.num_workers,
            policy=make_scaling_policy(rails, role=plan.role, look_back_period_s=2.0),
        )
        for plan in scenario.pools
    )
    groups = {"cpu": GroupCost(num_gpus=1.0, cost_per_hour=None)}
    scaling = ScalingSetup(pools=pools, groups=groups)
    return replace(scenario, control=replace(scenario.control, scaling=scaling))
