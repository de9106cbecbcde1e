"""What one worker is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pdray.core.cluster_secret import ClusterSecret
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.engine.config import EngineConfig
from pdray.kvcache.tiers.base import TierConfig
from pdray.worker.parked_table import ParkingLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """``host`` is the address that the link listens on and that peers dial. ``lease_s`` bounds
    how long a handoff may go without progress before its owner takes its blocks back. With a
    cluster's ``secret`` its link opens to whoever has that too, and prompts may be parked.
    Without ``tiers``, evicted blocks are lost."""

    worker_id: WorkerId
    pool: str
    node_group: str
    role: Role
    host: str
    model_path: Path
    engine: EngineConfig
    transport: str
    lease_s: float
    secret: ClusterSecret | None = None
    parking: ParkingLimits = field(default_factory=ParkingLimits)
    tiers: TierConfig | None = None
