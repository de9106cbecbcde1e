"""What reads between node groups cost, by what workers have measured."""

from __future__ import annotations

from collections.abc import Sequence

from pdray.core.link_cost import LinkCost


class LinkCosts:
    """For every pair of node groups, what the worker that read last has said."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, str], LinkCost] = {}

    def get(self, source: str, target: str) -> LinkCost | None:
        return self._costs.get((source, target))

    def reported(
        self, target: str, reads: Sequence[LinkCost], before: Sequence[LinkCost] = ()
    ) -> None:
        """By a worker on ``target`` that said ``before`` the last time: what is the same now is no
        news."""
        known = {cost.source: cost for cost in before}
        for cost in reads:
            if known.get(cost.source) != cost:
                self._costs[cost.source, target] = cost
