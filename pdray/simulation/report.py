"""A simulation's result as rows to print, and as a course over time to draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pdray.metrics.latency import Distribution

from .result import SimulationResult
from .sequence import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Requests that arrived in ``length_s`` from ``begins_s`` on, and how many of them met the SLO:
    None where there were none. ``num_workers``: of each pool, ready or draining, on average."""

    begins_s: float
    length_s: float
    num_requests: int
    slo_attainment: float | None
    num_workers: dict[str, float]

    @property
    def arrived_rps(self) -> float:
        return self.num_requests / self.length_s


def rows_of(result: SimulationResult) -> list[tuple[str, str]]:
    """Labels and texts."""
    num = len(result.outcomes)
    rows = [("requests", f"{num:,}"), ("refused or not finished", f"{num - result.num_complete:,}")]
    if result.slo_attainment is not None:
        rows += [
            ("SLO attainment", f"{result.slo_attainment:.2%}"),
            ("goodput", f"{result.goodput_rps:.2f} requests/s"),
        ]
    for label, seconds in (("TTFT", result.ttft_s), ("ITL", result.itl_s)):
        if seconds is not None:
            rows.append((f"{label} P50 / P90 / P99", _percentiles(seconds)))
    rows.append(("GPU-hours", f"{result.gpu_hours:.1f}"))
    rows += [
        (f"  {each.pool} on {each.node_group}", f"{each.gpu_s / 3600:.1f}") for each in result.usage
    ]
    if result.cost:
        rows.append(("cost", f"{result.cost:.2f}"))
    rows.append(("preemptions", f"{result.num_preemptions:,}"))
    return rows


def _percentiles(seconds: Distribution) -> str:
    values = (seconds.p50, seconds.p90, seconds.p99)
    return " / ".join(f"{value * 1e3:,.0f}" for value in values) + " ms"


def intervals(result: SimulationResult, length_s: float) -> list[Interval]:
    """From the start to the end, each of ``length_s``."""
    assert length_s > 0, f"intervals of {length_s} s"
    num_intervals = max(1, -int(-result.ended_at // length_s))
    arrived: list[list[Outcome]] = [[] for _ in range(num_intervals)]
    for outcome in result.outcomes:
        arrived[min(int(outcome.arrived_at / length_s), num_intervals - 1)].append(outcome)
    pools = sorted({size.pool for size in result.sizes})
    workers = {pool: list(_mean_workers(result, pool, length_s, num_intervals)) for pool in pools}
    return [
        Interval(
            begins_s=number * length_s,
            length_s=length_s,
            num_requests=len(outcomes),
            slo_attainment=_attainment(result, outcomes),
            num_workers={pool: counts[number] for pool, counts in workers.items()},
        )
        for number, outcomes in enumerate(arrived)
    ]


def _attainment(result: SimulationResult, outcomes: list[Outcome]) -> float | None:
    if not outcomes:
        return None
    return sum(each.meets(result.slo) for each in outcomes) / len(outcomes)


def _mean_workers(
    result: SimulationResult, pool: str, length_s: float, num_intervals: int
) -> Iterator[float]:
    sizes = result.sizes_of(pool)
    changes = [(each.at, each.num_ready + each.num_draining) for each in sizes]
    index, count = 0, 0
    for number in range(num_intervals):
        at, end_at = number * length_s, (number + 1) * length_s
        worker_s = 0.0
        while index < len(changes) and changes[index][0] < end_at:
            worker_s += count * (changes[index][0] - at)
            at, count = changes[index]
            index += 1
        yield (worker_s + count * (end_at - at)) / length_s
