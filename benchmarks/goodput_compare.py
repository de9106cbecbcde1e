"""Several runs of goodput as one: who leads at which load and how strict an SLO, and a plot.

    python -m benchmarks.goodput_compare benchmarks/results/goodput-*.json --output goodput.png

The runs must have had the same SLOs (``benchmarks.goodput --slos``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.goodput_plot import Attainments, save_goodput_plot


def read_runs(paths: Sequence[Path]) -> tuple[str, dict[str, Attainments]]:
    """The machine's CPU, and by workload what was found. Raises ValueError for runs of other SLOs
    or another CPU than the first, and for a load that was measured twice."""
    runs = [json.loads(path.read_text()) for path in paths]
    found: dict[str, dict[tuple[str, float], dict[float, dict[float, float]]]] = defaultdict(dict)
    for path, run in zip(paths, runs, strict=True):
        own, first = ((each["slos"], each["machine"]["cpu"]) for each in (run, runs[0]))
        if own != first:
            raise ValueError(f"{path}: SLOs and CPU {own}; {paths[0]} has {first}")
        for each in run["findings"]:
            load = (each["system"], each["rate_rps"])
            if load in found[each["workload"]]:
                raise ValueError(f"{path}: {load} of {each['workload']} is in another file, too")
            found[each["workload"]][load] = {
                float(share): {float(scale): kept for scale, kept in swept.items()}
                for share, swept in each["attainments"].items()
            }
    return runs[0]["machine"]["cpu"], dict(found)


def leaders_table(workload: str, attainments: Attainments, share: float) -> Table:
    """Of pdray's systems and of vLLM's the one that keeps the SLO for the most requests.
    ``share``: of a request's gaps, that must be in time."""
    scales = sorted(next(iter(attainments.values()))[share])
    table = Table(
        title=f"{workload}: best of pdray : best of vLLM, % that keep the SLO, {share:.0%} of gaps"
    )
    for column in ("requests/s", *(f"SLO x {scale:g}" for scale in scales)):
        table.add_column(column, justify="right")
    for rate in sorted({rate for _, rate in attainments}):
        of_rate = {
            system: found[share] for (system, of), found in attainments.items() if of == rate
        }
        sides = [
            {system: found for system, found in of_rate.items() if is_vllm(system) == which}
            for which in (False, True)
        ]
        cells = (" : ".join(_best(side, scale) for side in sides) for scale in scales)
        table.add_row(f"{rate:g}", *cells)
    return table


def is_vllm(system: str) -> bool:
    return system.startswith("vllm")


def _best(systems: Mapping[str, Mapping[float, float]], scale: float) -> str:
    if not systems:
        return "-"
    best = max(systems, key=lambda system: systems[system][scale])
    return f"{best} {100 * systems[best][scale]:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("results", nargs="+", type=Path, help="files that benchmarks.goodput wrote")
    parser.add_argument("--output", type=Path, help="for a PNG")
    arguments = parser.parse_args(argv)
    console = Console(width=200)
    try:
        cpu, workloads = read_runs(arguments.results)
    except (ValueError, OSError, KeyError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    for workload, attainments in workloads.items():
        for share in sorted(next(iter(attainments.values()))):
            console.print(leaders_table(workload, attainments, share))
    if arguments.output is not None:
        save_goodput_plot(arguments.output, cpu, workloads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
