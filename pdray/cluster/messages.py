"""What the controller, the workers and the clients tell each other through Ray."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.config import PdrayConfig
from pdray.core.placement import ServingLimits
from pdray.core.prefix_report import PrefixReport
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerSnapshot, WorkerState
from pdray.core.startup import StartupTimes
from pdray.metrics.window import LatencyCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker actor is made with."""

    config: PdrayConfig
    worker_id: WorkerId
    pool: str
    index: int
    node_group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailure:
    """A worker could not start. ``is_final``: nor could the next one, as the config or the
    model is at fault."""

    reason: str
    is_final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Worker to controller. No snapshot while it starts; no prefixes where nothing is new."""

    pool: str
    index: int
    node_id: str
    progress: str
    snapshot: WorkerSnapshot | None
    prefixes: PrefixReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """``is_wanted`` renews the worker's lease. Where the controller does not know what its
    ``prefixes`` follow on, it has to start them again. ``role`` is what is placed on it, None where
    it has not joined yet: a remade controller goes on from there."""

    is_wanted: bool
    knows_prefixes: bool
    role: Role | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendReport:
    """Frontend to controller: all its metrics, and the latencies that are new."""

    metrics_text: bytes
    latencies: LatencyCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Controller to frontend. ``wants_resume``: it does not know what the frontend has in
    flight."""

    wants_resume: bool
    limits: ServingLimits | None


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Claim:
    """Of all generations of an application, the one with the greatest claim is wanted.
    ``claimed_at``: when the youngest of its frontends and launchers started, in seconds since
    1970, as it is compared between machines."""

    claimed_at: float
    generation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One place in a pool. ``progress`` is what its worker does in words; ``last_failure`` is
    why its last worker ended, if it ended badly. ``startup`` is of the one that is ready."""

    pool: str
    index: int
    role: Role
    node_group: str
    state: WorkerState
    worker_id: WorkerId | None
    progress: str
    num_failures: int
    last_failure: str | None
    is_hopeless: bool
    startup: StartupTimes | None = None


_DONE = (WorkerState.READY, WorkerState.DRAINING, WorkerState.STOPPED)
"""Nothing is to be waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStatus:
    application: str
    generation: str
    is_retired: bool
    workers: tuple[WorkerStatus, ...]
    frontend_ids: tuple[str, ...]
    num_queued: int
    num_in_flight: int
    max_in_flight: int
    num_placed_by_how: dict[str, int]
    desired_workers: dict[str, int]
    idle_pools: tuple[str, ...]
    can_place: bool
    """Or will, as soon as somebody asks: a pool may have gone to none."""
    layout_mismatch: str | None

    @property
    def is_ready(self) -> bool:
        """Every place in every pool has a worker that takes requests, or is given up."""
        return all(worker.state in _DONE for worker in self.workers)

    @property
    def missing(self) -> str:
        """Which workers are not ready, and why, in one line; empty where all are."""
        lines = []
        for worker in self.workers:
            if worker.state not in _DONE:
                failure = f"; failed before: {worker.last_failure}" if worker.last_failure else ""
                words = worker.progress or worker.state.value
                lines.append(f"{worker.pool} worker {worker.index} ({words}{failure})")
        return ", ".join(lines)

    @property
    def hopeless(self) -> str | None:
        """Why waiting cannot help: no worker can be started in some place, or those that were
        cannot work together. None where it can."""
        for worker in self.workers:
            if worker.is_hopeless:
                place = f"worker {worker.index} of pool {worker.pool}"
                return f"{place} does not start: {worker.last_failure}"
        return self.layout_mismatch
