"""The share of requests that keep an SLO: by load, and by how strict the SLO is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure


def save_goodput_plot(
    path: Path, title: str, attainments: Mapping[tuple[str, float], Mapping[float, float]]
) -> None:
    """Writes a PNG. ``attainments``: by system and rate, then by the SLO's scale, 1 among them."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    systems = list(dict.fromkeys(system for system, _ in attainments))
    rates = sorted({rate for _, rate in attainments})
    middle = rates[len(rates) // 2]
    for system in systems:
        own = {rate: found for (of, rate), found in attainments.items() if of == system}
        left.plot(sorted(own), [own[rate][1.0] for rate in sorted(own)], marker="o", label=system)
        if middle in own:
            scales = sorted(own[middle])
            right.plot(scales, [own[middle][each] for each in scales], marker="o")
    left.set(xlabel="requests a second", ylabel="requests that keep the SLO", ylim=(-0.02, 1.02))
    right.set(xlabel=f"SLO, times as loose ({middle:g} requests/s)", xscale="log")
    right.set_xticks(scales := sorted(next(iter(attainments.values()))), map("{:g}".format, scales))
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, dpi=120)
