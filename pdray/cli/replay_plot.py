"""Simulations as a picture: what came, how many workers each pool had, which part kept the SLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdray.simulation.report import Interval
from pdray.simulation.result import SimulationResult

Course = tuple[SimulationResult, Sequence[Interval]]


def save_replay_plot(path: Path, courses: Mapping[str, Course]) -> None:
    """Writes a PNG. ``courses`` by name, all of one workload; each gets a column."""
    figure = Figure(figsize=(1 + 5 * len(courses), 7), layout="constrained")
    columns = figure.subplots(3, len(courses), sharex=True, sharey="row", squeeze=False)
    for number, (name, (result, course)) in enumerate(courses.items()):
        load, workers, kept = (columns[row][number] for row in range(3))
        attainment = result.slo_attainment or 0.0
        load.set_title(f"{name}\n{attainment:.1%} in time, {result.gpu_hours:.0f} GPU-hours")
        hours = [each.begins_s / 3600 for each in course]
        load.step(hours, [each.arrived_rps for each in course], where="post", color="0.4")
        for pool in course[0].num_workers:
            numbers = [each.num_workers[pool] for each in course]
            workers.step(hours, numbers, where="post", label=pool)
        workers.legend()
        asked = [each for each in course if each.slo_attainment is not None]
        hours_asked = [each.begins_s / 3600 for each in asked]
        kept.plot(hours_asked, [each.slo_attainment or 0.0 for each in asked], ".", markersize=3)
        kept.set(xlabel="time [h]", ylim=(-0.02, 1.02))
        for axes in (load, workers, kept):
            axes.grid(alpha=0.3)
    _label(columns[0][0], "requests/s")
    _label(columns[1][0], "workers")
    _label(columns[2][0], "SLO attainment")
    figure.savefig(path, dpi=120)


def _label(axes: Axes, label: str) -> None:
    axes.set(ylabel=label)
    axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.0))
