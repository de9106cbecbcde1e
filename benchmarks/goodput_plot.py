"""The share of requests that keep an SLO: by load, and by how strict the SLO is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Attainments = Mapping[tuple[str, float], Mapping[float, Mapping[float, float]]]
"""By system and rate, then by the share of gaps that must be in time, then by the SLO's scale, 1
among them."""


def save_goodput_plot(path: Path, title: str, workloads: Mapping[str, Attainments]) -> None:
    """Writes a PNG, a row for each workload."""
    figure = Figure(figsize=(12, 0.6 + 2.7 * len(workloads)), layout="constrained")
    figure.suptitle(title)
    systems = sorted({system for found in workloads.values() for system, _ in found})
    colors = {system: f"C{index}" for index, system in enumerate(systems)}
    rows = figure.subplots(len(workloads), 3, sharey=True, squeeze=False)
    for row, (name, attainments) in zip(rows, workloads.items(), strict=True):
        _draw(row, attainments, colors)
        row[0].set(ylabel=f"{name}\nrequests that keep the SLO", ylim=(-0.03, 1.03))
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=80)


def _draw(row: Sequence[Axes], attainments: Attainments, colors: Mapping[str, str]) -> None:
    rates = sorted({rate for _, rate in attainments})
    shares = sorted(next(iter(attainments.values())))
    middle = rates[len(rates) // 2]
    for system, color in colors.items():
        own = {rate: found for (of, rate), found in attainments.items() if of == system}
        line = "o--" if system.startswith("vllm") else "o-"
        style: dict[str, Any] = {"color": color, "markersize": 4.0}
        kept = [own[rate][shares[0]][1.0] for rate in sorted(own)]
        row[0].plot(sorted(own), kept, line, label=system, **style)
        if middle in own:
            for axes, share in zip(row[1:], shares, strict=True):
                swept = own[middle][share]
                axes.plot(sorted(swept), [swept[scale] for scale in sorted(swept)], line, **style)
    row[0].set(xlabel=f"requests/s ({_gaps(shares[0])})", xlim=(0, None))
    scales = sorted(next(iter(attainments.values()))[shares[0]])
    for axes, share in zip(row[1:], shares, strict=True):
        axes.set(xlabel=f"SLO, times as loose, {middle:g} requests/s ({_gaps(share)})")
        axes.set_xscale("log")
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.minorticks_off()
    for axes in row:
        axes.grid(alpha=0.3)


def _gaps(share: float) -> str:
    return f"{share:.0%} of gaps"
