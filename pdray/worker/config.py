"""What one worker is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """``host`` is the address that the link listens on and that peers dial. ``lease_s`` bounds
    how long a handoff may go without progress before its owner takes its blocks back."""

    worker_id: WorkerId
    pool: str
    node_group: str
    role: Role
    host: str
    model_path: Path
    engine: EngineConfig
    transport: str
    lease_s: float
