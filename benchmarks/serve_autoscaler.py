"""Ray Serve's own autoscaling of simulated pools: its functions, fed as its controller feeds them
(ray/serve/_private/autoscaling_state.py, 2.60), on the simulation's clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve._private.metrics_utils import aggregate_timeseries
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from pdray.core.snapshot import Role
from pdray.simulation.scaler import PoolView, ScalingView


@dataclass(slots=True)
class _Deployment:
    """``recorded`` samples of ongoing requests; ``reported`` are those that the controller has."""

    config: Any
    recorded: deque[Any] = field(default_factory=deque)
    reported: list[Any] = field(default_factory=list)
    reported_at: float | None = None
    state: dict[str, Any] = field(default_factory=dict)


class ServeAutoscaler:
    """A deployment for each pool, with its own config. To be asked once a second: replicas and
    handles record as often, and report every ``metrics_interval_s``."""

    def __init__(self, configs: Mapping[str, AutoscalingConfig]) -> None:
        self._deployments = {name: _Deployment(config) for name, config in configs.items()}

    def look(self, view: ScalingView, now: float) -> Mapping[str, int]:
        wanted = {}
        for name, pool in view.pools.items():
            deployment = self._deployments[name]
            # What waits for a place waits in the handle of the deployment that it would go to.
            num_queued = view.num_queued if Role.PREFILL in pool.role else 0
            _record(deployment, pool.num_ongoing + num_queued, now)
            wanted[name] = _decide(deployment, pool, now)
        return wanted


def _record(deployment: _Deployment, num_ongoing: int, now: float) -> None:
    config, recorded = deployment.config, deployment.recorded
    recorded.append(TimeStampedValue(now, num_ongoing))
    while recorded[0].timestamp < now - config.look_back_period_s:
        recorded.popleft()
    reported_at = deployment.reported_at
    if reported_at is None or now - reported_at >= config.metrics_interval_s:
        deployment.reported, deployment.reported_at = list(recorded), now


def _decide(deployment: _Deployment, pool: PoolView, now: float) -> int:
    """As serve's DeploymentAutoscalingState.get_decision_num_replicas."""
    config = deployment.config
    total = aggregate_timeseries(
        deployment.reported,
        config.aggregation_function,
        last_window_s=max(now - deployment.reported[-1].timestamp, 1e-3),
    )
    context = AutoscalingContext(
        deployment_id=DeploymentID(pool.name),
        deployment_name=pool.name,
        app_name="simulated",
        current_num_replicas=pool.num_ready,
        target_num_replicas=pool.num_wanted,
        running_replicas=[],
        total_num_requests=total or 0.0,
        total_queued_requests=None,
        aggregated_metrics=None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state=deployment.state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now,
        config=config,
    )
    desired, _ = replica_queue_length_autoscaling_policy(context)
    scaled = _apply_scaling_factors(desired, pool.num_ready, config)
    number, deployment.state = _apply_delay_logic(
        max(scaled, 0), pool.num_wanted, config, deployment.state, now
    )
    return min(max(number, cast(int, config.min_replicas)), cast(int, config.max_replicas))
