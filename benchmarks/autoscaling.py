"""Days of requests on simulated clusters that scale in different ways: SLO attainment, GPU-hours.

The control plane is the shipped one, workers are as a profile has them (benchmarks/profiles), and
the days are made of published traces: their lengths and lumps, a daily curve, two bursts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.fixed_search import Counts, cheapest
from benchmarks.result_file import save_result
from benchmarks.scaling_days import CASES, MAX_REPLICAS, DayRuns
from pdray.cli.replay_plot import save_replay_plot
from pdray.core.snapshot import Role
from pdray.scaling_config import AutoscalingConfig, load_policy
from pdray.simulation.report import Interval, intervals
from pdray.simulation.result import SimulationResult

POLICY = Path(__file__).parents[1] / "autoscaling" / "slo.yaml"
GOAL_OF_BEST = 0.99
"""The fixed optimum: the cheapest fleet with so much of the largest one's attainment."""
DRAWN_INTERVALS = 288
SERVE_TUNED: dict[str, dict[Role, float]] = {
    "mooncake-h100": {Role.PREFILL: 1.0, Role.DECODE: 10.0},
    "azure-conv-cpu": {Role.PREFILL: 1.0, Role.DECODE: 8.0},
}
"""``target_ongoing_requests`` by role: the best of a few, on days of another seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    slo_attainment: float
    gpu_hours: float
    cost: float
    mean_workers: dict[str, float]
    ttft_p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of one day. ``front``: the fixed fleets that were tried."""

    case: str
    seed: int
    num_requests: int
    optimum: Counts
    rows: list[Row]
    front: list[dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DayArguments:
    case: str
    seed: int
    traces: Path
    max_fixed: int
    hours: float

    def runs(self) -> DayRuns:
        return DayRuns(CASES[self.case], self.traces, self.seed, self.hours * 3600)


Results = dict[str, SimulationResult]
Attainments = dict[Counts, float]


def run_day(day: DayArguments, png: Path | None, executor: Executor) -> Found:
    ours = executor.submit(_run_policies, day)
    serves = executor.submit(_run_serve, day)
    fixed = executor.submit(_run_fixed, day, (day.max_fixed,) * 2, None, {})
    results = ours.result() | serves.result()
    optimum, best, known = fixed.result()
    results["fixed optimum"] = best
    coupled = executor.submit(_run_coupled, day, optimum)
    goal = _attainment(results["predictive"])
    equal = executor.submit(_run_fixed, day, optimum, goal, known)
    results["coupled, the optimum's ratio"] = coupled.result()
    _, results["fixed, as good as predictive"], known = equal.result()
    if png is not None:
        shown = ("reactive", "predictive", "Ray Serve, tuned", "fixed optimum")
        save_replay_plot(png, {name: (results[name], _course(results[name])) for name in shown})
    return Found(
        case=day.case,
        seed=day.seed,
        num_requests=len(best.outcomes),
        optimum=optimum,
        rows=[_row(name, result) for name, result in results.items()],
        front=[
            {"workers": counts, "slo_attainment": attained} for counts, attained in known.items()
        ],
    )


def our_policies(pools: Iterable[str], *, predictive: bool) -> dict[str, AutoscalingConfig]:
    policy = load_policy(POLICY).model_copy(
        update={"max_replicas": MAX_REPLICAS, "predictive": predictive}
    )
    return dict.fromkeys(pools, policy)


def _run_policies(day: DayArguments) -> Results:
    runs = day.runs()
    return {
        "reactive": runs.under_policies(our_policies(runs.pools, predictive=False)),
        "predictive": runs.under_policies(our_policies(runs.pools, predictive=True)),
    }


def _run_serve(day: DayArguments) -> Results:
    runs = day.runs()
    tuned = {
        name: {"target_ongoing_requests": SERVE_TUNED[day.case][role]}
        for name, (role, _) in runs.pools.items()
    }
    return {
        "Ray Serve, its defaults": runs.under_serve({name: {} for name in runs.pools}),
        "Ray Serve, tuned": runs.under_serve(tuned),
    }


def _run_fixed(
    day: DayArguments, most: Counts, goal: float | None, known: Attainments
) -> tuple[Counts, SimulationResult, Attainments]:
    """The cheapest fleet with ``goal``, what it does, and all that were tried. Without ``goal``
    nearly as good as ``most``."""
    runs = day.runs()
    gpus = {each.pool: each.gpus for each in runs.profile.workers}
    tried = dict(known)
    results: dict[Counts, SimulationResult] = {}

    def simulated(counts: Counts) -> SimulationResult:
        if counts not in results:
            results[counts] = runs.fixed(dict(zip(runs.pools, counts, strict=True)))
            tried[counts] = _attainment(results[counts])
        return results[counts]

    def attain(counts: Counts) -> float:
        return tried[counts] if counts in tried else _attainment(simulated(counts))

    if goal is None:
        goal = GOAL_OF_BEST * attain(most)
    found = cheapest(attain, goal, most, tuple(gpus[name] for name in runs.pools)) or most
    return found, simulated(found), tried


def _run_coupled(day: DayArguments, optimum: Counts) -> SimulationResult:
    runs = day.runs()
    ratio = dict(zip(runs.pools, optimum, strict=True))
    return runs.coupled(ratio, our_policies(runs.pools, predictive=True))


def _attainment(result: SimulationResult) -> float:
    return result.slo_attainment or 0.0


def _course(result: SimulationResult) -> Sequence[Interval]:
    return intervals(result, result.ended_at / DRAWN_INTERVALS)


def _row(name: str, result: SimulationResult) -> Row:
    (whole,) = intervals(result, result.ended_at)
    ttft = result.ttft_s
    return Row(
        name=name,
        slo_attainment=_attainment(result),
        gpu_hours=result.gpu_hours,
        cost=result.cost,
        mean_workers=whole.num_workers,
        ttft_p99_s=0.0 if ttft is None else ttft.p99,
    )


def show(found: Found) -> Table:
    title = f"{found.case}, seed {found.seed}: {found.num_requests:,} requests"
    table = Table(title=title)
    for column in ("", "SLO attainment", "of the optimum's", "GPU-hours", "against it", "workers"):
        table.add_column(column, justify="left" if not column else "right")
    by_name: Mapping[str, Row] = {row.name: row for row in found.rows}
    best = by_name["fixed optimum"]
    for row in found.rows:
        table.add_row(
            row.name,
            f"{row.slo_attainment:.2%}",
            f"{row.slo_attainment / best.slo_attainment:.1%}",
            f"{row.gpu_hours:.0f}",
            f"{row.gpu_hours / best.gpu_hours - 1:+.0%}",
            ", ".join(f"{number:.1f} {pool}" for pool, number in row.mean_workers.items()),
        )
    return table


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="a folder with the traces")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--seed", type=int, action="append", help="default: 1")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0, help="of each day, from midnight on")
    parser.add_argument("--max-fixed", type=int, default=10, help="workers of a pool at most")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    found = []
    with ProcessPoolExecutor(args.processes) as executor:
        for case in args.case or CASES:
            for seed in args.seed or [1]:
                day = DayArguments(
                    case=case,
                    seed=seed,
                    traces=args.traces,
                    max_fixed=args.max_fixed,
                    hours=args.hours,
                )
                png = args.output_dir / f"autoscaling-{case}-{seed}.png"
                each = run_day(day, png, executor)
                console.print(show(each))
                found.append(asdict(each))
    args.traces = args.traces.name
    path = save_result("autoscaling", args, days=found)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
