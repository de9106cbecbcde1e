"""What interference found, drawn: gaps of the chats and first tokens of the long prompts.

    python -m benchmarks.interference_plot benchmarks/results/interference-*.json --output out.png

Runs of one machine and one load; each has its own floor, so gaps are drawn as multiples of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

_GAPS = (("itl_p50_s", "P50", "|"), ("itl_p99_s", "P99", "o"), ("itl_max_s", "max", "x"))
_FIRST = (("ttft_p50_s", "P50", "o"), ("ttft_max_s", "max", "x"))


def save_interference_plot(path: Path, title: str, found: Sequence[Mapping[str, float]]) -> None:
    """Writes a PNG. ``found``: findings of interference with ``floor_s`` beside them."""
    figure = Figure(figsize=(10, 0.9 + 0.33 * len(found)), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(found), 0, -1)
    for key, label, marker in _GAPS:
        left.scatter(
            [each[key] / each["floor_s"] for each in found], rows, marker=marker, label=label
        )
    for key, label, marker in _FIRST:
        known = [(each[key], row) for each, row in zip(found, rows, strict=True) if each[key]]
        right.scatter(*zip(*known, strict=True), marker=marker, label=label)
    left.axvline(1.0, color="gray", linestyle="--")
    left.set(xlabel="gaps between the chats' tokens, of the floor's P99", xscale="log")
    left.set_yticks(rows, [str(each["system"]) for each in found])
    right.set(xlabel="first tokens of the long prompts, s", xlim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=90)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="for the PNG")
    arguments = parser.parse_args(argv)
    runs = [json.loads(path.read_text()) for path in arguments.results]
    found = [
        each | {"floor_s": run["floor"]["beside_p99_s"]} for run in runs for each in run["systems"]
    ]
    machine = runs[0]["machine"]
    save_interference_plot(arguments.output, f"{machine['cpu']}, {machine['date'][:10]}", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
