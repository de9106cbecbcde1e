"""What a worker asks of Ray on each kind of machine."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.config import NodeGroupConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResources:
    """One worker's resources, in the words of Ray's actor options."""

    num_cpus: float
    num_gpus: float
    resources: dict[str, float]
    accelerator_type: str | None
    label_selector: dict[str, str]


def worker_resources(group: NodeGroupConfig) -> WorkerResources:
    """A custom resource ties the worker to its group: a label alone makes no node appear."""
    others = dict(group.resources_per_worker)
    num_cpus = others.pop("CPU", 0.0)
    num_gpus = others.pop("GPU", 0.0)
    if group.resource is not None:
        others.setdefault(group.resource, 1.0)
    return WorkerResources(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=others,
        accelerator_type=group.accelerator_type,
        label_selector=dict(group.labels),
    )


_FIRST_PATIENCE_S = 10.0
_MAX_PATIENCE_S = 600.0


def steady_first(groups: tuple[str, ...], spot: frozenset[str]) -> tuple[str, ...]:
    """For workers that a pool must always have: those that nobody takes away before ``spot``
    ones."""
    return tuple(sorted(groups, key=lambda group: group in spot))


class GroupChoice:
    """Goes through a pool's node groups, in order of preference, until one has room.

    Each round is twice as patient: a machine that has to be started first gets its minutes.
    """

    def __init__(self, groups: tuple[str, ...]) -> None:
        self._groups = groups
        self._num_tried = 0

    @property
    def group(self) -> str:
        return self._groups[self._num_tried % len(self._groups)]

    @property
    def patience_s(self) -> float:
        """How long to wait for room in this group. An only group gets the longest: what waits
        there may as well be an old worker that hangs."""
        if len(self._groups) == 1:
            return _MAX_PATIENCE_S
        num_rounds = self._num_tried // len(self._groups)
        return min(_FIRST_PATIENCE_S * 2.0**num_rounds, _MAX_PATIENCE_S)

    def next(self) -> None:
        self._num_tried += 1

    def restart(self) -> None:
        """Back to the first preference: for a worker that follows one that had room."""
        self._num_tried = 0
