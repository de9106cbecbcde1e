"""On which node group a pool's next worker is to start: where the phase costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdray.core.snapshot import FleetView, Role, WorkerView
from pdray.core.step_time import StepTime, StepWork
from pdray.policy.scaling.base import GroupCost

_BATCH = 16
_CONTEXT_TOKENS = 1024
_PROMPT_TOKENS = 1024


def order_groups(
    groups: tuple[str, ...], phase: Role, costs: Mapping[str, GroupCost], view: FleetView
) -> tuple[str, ...]:
    """The cheapest work first, as far as step times and costs are known of all; else in the order
    of the config, which is the user's."""
    if len(groups) == 1:
        return groups
    prices = {group: _price(group, phase, costs[group], view.ready(phase)) for group in groups}
    if any(price is None for price in prices.values()):
        return groups
    return tuple(sorted(groups, key=lambda group: (prices[group], groups.index(group))))


def _price(group: str, phase: Role, cost: GroupCost, workers: Sequence[WorkerView]) -> float | None:
    """What the same work costs on a worker there, in no unit; None where somebody has to find out
    first."""
    if cost.cost_per_hour is None:
        return None
    step_times = (worker.step_time for worker in workers if worker.info.node_group == group)
    step_time = next((each for each in step_times if each is not None), None)
    if step_time is None:
        return None
    work_s = _work_s(step_time, phase)
    return cost.cost_per_hour * work_s if work_s > 0.0 else None


def _work_s(step_time: StepTime, phase: Role) -> float:
    """0 of a phase that the worker has not run."""
    if phase is Role.PREFILL:
        if step_time.prefill_token_s == 0.0:
            return 0.0
        return step_time.step_s(StepWork(num_prefill_tokens=_PROMPT_TOKENS))
    if step_time.decode_s + step_time.context_token_s == 0.0:
        return 0.0
    work = StepWork(num_decodes=_BATCH, num_context_tokens=_BATCH * _CONTEXT_TOKENS)
    return step_time.step_s(work)
