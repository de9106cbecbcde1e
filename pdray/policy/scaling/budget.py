"""All pools' wishes within one budget: where it binds, every pool gets the same part of what it
needs, so that the ratio between them is the measured one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .base import Budget

_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWish:
    """``desired`` workers, at least ``min_workers`` of them whatever it costs; ``demand`` is what
    they have to do, in workers. Each has ``num_gpus`` and costs ``cost_per_hour``. ``num_spent``
    more cost as much: those that drain."""

    desired: int
    min_workers: int
    demand: float
    num_gpus: float
    cost_per_hour: float
    num_spent: int = 0


def fit_budget(wishes: Mapping[str, PoolWish], budget: Budget) -> dict[str, int]:
    """How many each pool may have, never more than it desires. A budget that does not even have
    room for all minima gives these."""
    allowed = {name: min(wish.min_workers, wish.desired) for name, wish in wishes.items()}
    if not budget.is_limited:
        return {name: wish.desired for name, wish in wishes.items()}
    open_pools = set(wishes)
    while open_pools:
        name = min(open_pools, key=lambda name: _supplied(wishes[name], allowed[name], name))
        more = allowed | {name: allowed[name] + 1}
        if allowed[name] >= wishes[name].desired or not _fits(wishes, more, budget):
            open_pools.remove(name)
        else:
            allowed = more
    return allowed


def _supplied(wish: PoolWish, num_workers: int, name: str) -> tuple[float, str]:
    """The part of its demand that a pool has; by name where equal."""
    return num_workers / max(wish.demand, _EPSILON), name


def _fits(wishes: Mapping[str, PoolWish], workers: Mapping[str, int], budget: Budget) -> bool:
    numbers = [(wish, workers[name] + wish.num_spent) for name, wish in wishes.items()]
    num_gpus = sum(num * wish.num_gpus for wish, num in numbers)
    cost = sum(num * wish.cost_per_hour for wish, num in numbers)
    if budget.max_gpus is not None and num_gpus > budget.max_gpus + _EPSILON:
        return False
    return budget.max_cost_per_hour is None or cost <= budget.max_cost_per_hour + _EPSILON
