"""A serving run as a picture: TTFT and ITL as shares of requests and tokens, and its course."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def in_flight_steps(spans: Sequence[tuple[float, float]]) -> tuple[list[float], list[int]]:
    """Times, and how many spans (begin, end) are open from each of them on."""
    changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    return [at for at, _ in changes], list(accumulate(change for _, change in changes))


def save_plot(
    path: Path,
    *,
    title: str,
    ttfts_s: Sequence[float],
    itls_s: Sequence[float],
    spans_s: Sequence[tuple[float, float]],
    slo_ttft_s: float | None,
    slo_itl_s: float | None,
) -> None:
    """Writes a PNG. ``spans_s`` are the times in flight, from the start of the run."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    _draw_cdf(left, ttfts_s, "TTFT [s]", slo_ttft_s)
    _draw_cdf(middle, itls_s, "ITL [s]", slo_itl_s)
    times_s, counts = in_flight_steps(spans_s)
    right.step(times_s, counts, where="post")
    right.set(xlabel="time [s]", ylabel="requests in flight", ylim=(0, None))
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _draw_cdf(axes: Axes, values: Sequence[float], label: str, slo: float | None) -> None:
    ordered = sorted(values)
    axes.step(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], where="post")
    if slo is not None:
        axes.axvline(slo, color="tab:red", linestyle="--", label="SLO")
        axes.legend()
    axes.set(xlabel=label, ylabel="share at or below", ylim=(0, 1.01))
    if ordered and ordered[-1] > 0:
        # Linear below a millisecond, so that gaps of zero have a place.
        axes.set_xscale("symlog", linthresh=0.001)
        axes.set_xlim(left=0.0 if ordered[0] < 0.001 else ordered[0] * 0.8)
    axes.grid(alpha=0.3)
