"""How many workers every pool should have: asks the policies, within the budget, and remembers."""

from __future__ import annotations

from dataclasses import replace

from pdray.core.scaling import PlaceCounts, PoolTarget, ScalingDecision
from pdray.core.snapshot import Role
from pdray.policy.node_order import order_groups
from pdray.policy.scaling.base import PoolView, ScalingSetup
from pdray.policy.scaling.budget import PoolWish, fit_budget
from pdray.policy.scaling.evaluate import Evaluation, evaluate

from .decaying_sum import DecayingSum
from .fleet import Fleet
from .pool_scaling import PoolScaling

_LATELY_S = 30.0
"""Of which arrivals a second are told."""


class Autoscaler:
    """Counts workers that take work, those that start, and standbys; never acts itself."""

    def __init__(self, fleet: Fleet, setup: ScalingSetup) -> None:
        self._fleet = fleet
        self._setup = setup
        self._pools = {each.name: PoolScaling(each, setup.pools) for each in setup.pools}
        self._arrivals = DecayingSum(_LATELY_S)

    def arrived(self, num_requests: int, now: float) -> None:
        self._arrivals.add(num_requests / _LATELY_S, now)

    def places_told(self, pool: str, places: PlaceCounts) -> None:
        self._pools[pool].places = places

    def places_found(self, pool: str, num_places: int) -> None:
        """Workers that live already, made by a controller before: it goes on from them."""
        scaling = self._pools[pool]
        policy = scaling.acting_policy
        if policy is not None:
            target = max(num_places - policy.standby_replicas, policy.rails.min_replicas, 1)
            target = min(target, policy.rails.max_replicas)
            scaling.memory = replace(scaling.memory, target=target)

    def look(
        self, num_queued: int, queued_tokens: int, unix_time: float, now: float
    ) -> list[ScalingDecision]:
        """Of the pools whose time has come. With ``unix_time`` schedules know the hour."""
        evaluated: dict[str, tuple[PoolView, Evaluation]] = {}
        for name, scaling in self._pools.items():
            policy = scaling.setup.policy
            if policy is not None and scaling.is_due(now):
                scaling.looked_at = now
                queue = (num_queued, queued_tokens)
                view = scaling.view(self._fleet, policy.slo, queue, self._arrivals.at(now))
                evaluation, scaling.memory = evaluate(view, policy, scaling.memory, unix_time, now)
                evaluated[name] = view, evaluation
        allowed = fit_budget(self._wishes(evaluated), self._setup.budget)
        decisions = [
            self._decide(self._pools[name], view, evaluation, allowed[name])
            for name, (view, evaluation) in evaluated.items()
        ]
        for scaling in self._pools.values():
            scaling.settle_standbys(self._fleet)
        return decisions

    def targets(self) -> tuple[PoolTarget, ...]:
        return tuple(
            scaling.target(self._fleet, self._groups_of(scaling))
            for scaling in self._pools.values()
        )

    @property
    def may_have_none(self) -> bool:
        """Whether some pool may be without workers until somebody asks."""
        policies = [scaling.acting_policy for scaling in self._pools.values()]
        return any(each is not None and each.rails.min_replicas == 0 for each in policies)

    @property
    def desired(self) -> dict[str, int]:
        """What the policies want, those as well that only say so; of others what the config has."""
        return {
            name: scaling.setup.replicas if scaling.setup.policy is None else scaling.memory.target
            for name, scaling in self._pools.items()
        }

    def _decide(
        self, scaling: PoolScaling, view: PoolView, evaluation: Evaluation, allowed: int
    ) -> ScalingDecision:
        policy = scaling.setup.policy
        assert policy is not None
        reason = evaluation.reason
        if allowed < evaluation.desired:
            reason = f"the budget allows {allowed} of {evaluation.desired}; {reason}"
        if allowed == 0 and self._fleet.limits() is None:
            allowed, reason = 1, "the first worker shows what fits; the pool may go to none then"
        previous = scaling.memory.target
        scaling.memory = replace(scaling.memory, target=allowed)
        return ScalingDecision(
            pool=view.name,
            current=len(view.workers),
            starting=view.places.num_starting,
            standby=scaling.num_standby(self._fleet),
            readings=evaluation.readings,
            demand=evaluation.demand,
            aggregated=evaluation.aggregated,
            floor=evaluation.floor,
            desired=evaluation.desired,
            allowed=allowed,
            previous=previous,
            is_dry_run=policy.is_dry_run,
            reason=reason,
        )

    def _wishes(self, evaluated: dict[str, tuple[PoolView, Evaluation]]) -> dict[str, PoolWish]:
        """Those of pools that were not looked at now stand as they were; what costs anyhow is spent
        before any is granted."""
        wishes = {}
        for name, scaling in self._pools.items():
            desired, demand = scaling.memory.target, float(scaling.memory.target)
            if name in evaluated:
                evaluation = evaluated[name][1]
                desired, demand = evaluation.desired, max(evaluation.aggregated, evaluation.floor)
            policy = scaling.acting_policy
            group = self._setup.groups[self._groups_of(scaling)[0]]
            standbys = 0 if policy is None else policy.standby_replicas
            wishes[name] = PoolWish(
                desired=desired,
                min_workers=desired if policy is None else policy.rails.min_replicas,
                demand=demand,
                num_gpus=group.num_gpus,
                cost_per_hour=group.cost_per_hour or 0.0,
                num_spent=scaling.places.num_draining + standbys,
            )
        return wishes

    def _groups_of(self, scaling: PoolScaling) -> tuple[str, ...]:
        role = Role.DECODE if scaling.setup.role is Role.DECODE else Role.PREFILL
        return order_groups(scaling.setup.node_groups, role, self._setup.groups, self._fleet)
