"""Whoever decides how many workers a pool should have, and what it may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pdray.control.controller import ControlPlane
from pdray.core.slo import Slo
from pdray.core.snapshot import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """``num_ongoing``: requests on the pool's workers, those counted that only hold KV there for
    another; ``num_ongoing_by_worker`` of each ready one. ``num_wanted`` is the last number set."""

    name: str
    role: Role
    num_wanted: int
    num_ready: int
    num_starting: int
    num_draining: int
    num_ongoing_by_worker: tuple[int, ...]
    backlog_tokens: int
    kv_utilization: float
    """Of the ready workers' blocks, how many are held, 0..1."""

    @property
    def num_ongoing(self) -> int:
        return sum(self.num_ongoing_by_worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingView:
    """``num_queued`` requests wait at the control plane, which may be read and not told anything;
    ``num_arrived`` have come so far, with ``num_prompt_tokens``."""

    pools: Mapping[str, PoolView]
    num_queued: int
    num_arrived: int
    num_prompt_tokens: int
    slo: Slo
    control: ControlPlane


class Scaler(Protocol):
    def look(self, view: ScalingView, now: float) -> Mapping[str, int]:
        """How many workers pools should have; those left out stay as they are."""


class FixedCounts:
    """The same numbers for ever."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = dict(counts)

    def look(self, view: ScalingView, now: float) -> Mapping[str, int]:
        return self._counts
