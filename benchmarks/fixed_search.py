"""The smallest fixed fleet that is good enough, of two pools."""

from __future__ import annotations

from collections.abc import Callable

Counts = tuple[int, ...]
Attain = Callable[[Counts], float]
"""SLO attainment of a fleet: not less with more workers of any pool."""


def cheapest(attain: Attain, goal: float, start: Counts, costs: tuple[float, ...]) -> Counts | None:
    """The cheapest with at least ``goal``: each pool's fewest with ``start`` of the other, and from
    there upwards, the cheapest first. None where not even ``start`` has it."""
    if attain(start) < goal:
        return None
    lowest = tuple(_fewest(attain, goal, start, pool) for pool in range(len(start)))
    tried: set[Counts] = set()
    waiting = [lowest]
    while waiting:
        counts = min(waiting, key=lambda each: (_cost(each, costs), each))
        waiting.remove(counts)
        tried.add(counts)
        if attain(counts) >= goal:
            return counts
        for pool, most in enumerate(start):
            more = (*counts[:pool], counts[pool] + 1, *counts[pool + 1 :])
            if counts[pool] < most and more not in tried and more not in waiting:
                waiting.append(more)
    return start


def _fewest(attain: Attain, goal: float, start: Counts, pool: int) -> int:
    low, high = 0, start[pool]
    while high - low > 1:
        middle = (low + high) // 2
        if attain((*start[:pool], middle, *start[pool + 1 :])) >= goal:
            high = middle
        else:
            low = middle
    return high


def _cost(counts: Counts, costs: tuple[float, ...]) -> float:
    return sum(number * cost for number, cost in zip(counts, costs, strict=True))
