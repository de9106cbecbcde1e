"""What a simulation has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pdray.core.scaling import TimedDecision
from pdray.core.slo import Slo
from pdray.metrics.latency import Distribution

from .pools import PoolSize, Usage
from .sequence import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """``outcomes`` in the order in which they came to be; ``itl_s`` of all gaps between tokens;
    ``sizes`` whenever a pool's size changed; ``usage`` until ``ended_at``. ``decisions``
    are those of the control plane's scaling policies that changed something."""

    slo: Slo
    outcomes: tuple[Outcome, ...]
    itl_s: Distribution | None
    sizes: tuple[PoolSize, ...]
    usage: tuple[Usage, ...]
    ended_at: float
    num_placed_by_how: Mapping[str, int]
    num_preemptions: int
    decisions: tuple[TimedDecision, ...]

    @property
    def num_complete(self) -> int:
        return sum(each.finished_at is not None for each in self.outcomes)

    @property
    def num_good(self) -> int:
        """Requests that met all of the SLO."""
        return sum(each.meets(self.slo) for each in self.outcomes)

    @property
    def slo_attainment(self) -> float | None:
        """None where there were no requests."""
        return self.num_good / len(self.outcomes) if self.outcomes else None

    @property
    def goodput_rps(self) -> float:
        return self.num_good / self.ended_at if self.ended_at > 0 else 0.0

    @property
    def ttft_s(self) -> Distribution | None:
        """Of complete requests."""
        complete = (each for each in self.outcomes if each.finished_at is not None)
        return Distribution.of(each.ttft_s for each in complete if each.ttft_s is not None)

    @property
    def tpot_s(self) -> Distribution | None:
        return Distribution.of(each.tpot_s for each in self.outcomes if each.tpot_s is not None)

    @property
    def gpu_hours(self) -> float:
        return sum(each.gpu_s for each in self.usage) / 3600

    @property
    def worker_hours(self) -> float:
        return sum(each.worker_s for each in self.usage) / 3600

    @property
    def cost(self) -> float:
        return sum(each.cost for each in self.usage)

    def sizes_of(self, pool: str) -> list[PoolSize]:
        """Its sizes over time: of those at one time the last alone."""
        by_time = {each.at: each for each in self.sizes if each.pool == pool}
        return list(by_time.values())
