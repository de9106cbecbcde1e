"""Which worker changes its role: every worker holds the same weights in either, so what it takes is
that requests are placed otherwise from then on. What runs on it goes on there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pdray.core.request import WorkerId
from pdray.core.slo import Slo
from pdray.core.snapshot import FleetView, Role, WorkerView
from pdray.core.step_time import StepWork

from .forecast import queued_prompts_s, step_time_of

HOLD_S = 2.0
"""A need shorter than this is over before a flip would help."""
COOLDOWN_S = 10.0
"""Until the next flip: its effect has to be seen first."""
_MAX_DECODE_PRESSURE_AFTER = 0.8
_MAX_PREFILL_PRESSURE_AFTER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBounds:
    """How many workers of one role there are, at least and at most."""

    min_workers: int
    max_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFlip:
    worker_id: WorkerId
    role: Role
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """What the policy knows of earlier calls: the role that has been short since when, and when
    the last flip was."""

    short: Role | None = None
    short_since: float = 0.0
    flipped_at: float | None = None


def choose_flip(
    view: FleetView, slo: Slo, bounds: dict[Role, RoleBounds], memory: RoleMemory, now: float
) -> tuple[RoleFlip | None, RoleMemory]:
    """To be called every second or so. A role is short where it misses the SLO and the other would
    keep to it with one worker less; ``bounds`` has both roles."""
    short, reason = _short_role(view, slo, bounds)
    if short is None:
        return None, replace(memory, short=None)
    if memory.short is not short:
        return None, replace(memory, short=short, short_since=now)
    is_cooling = memory.flipped_at is not None and now - memory.flipped_at < COOLDOWN_S
    if is_cooling or now - memory.short_since < HOLD_S:
        return None, memory
    giver = min(_only(view, _other(short)), key=_work_left)
    flip = RoleFlip(worker_id=giver.info.worker_id, role=short, reason=reason)
    return flip, RoleMemory(flipped_at=now)


def prefill_pressure(workers: Sequence[WorkerView], slo: Slo) -> float:
    """The mean queue in seconds, as a part of the TTFT that is promised."""
    return sum(map(queued_prompts_s, workers)) / len(workers) / slo.ttft_s


def decode_pressure(workers: Sequence[WorkerView], slo: Slo) -> float:
    """How near the workers are to the end of what they can take, in time, seats or memory; at 1
    they are there."""
    return sum(max(worker.fullness, _step_s(worker) / slo.itl_s) for worker in workers) / len(
        workers
    )


def _step_s(worker: WorkerView) -> float:
    if worker.num_decoding == 0:
        return 0.0
    work = StepWork(num_decodes=worker.num_decoding, num_context_tokens=worker.num_decoding_tokens)
    return step_time_of(worker).step_s(work)


def _short_role(
    view: FleetView, slo: Slo, bounds: dict[Role, RoleBounds]
) -> tuple[Role | None, str]:
    prefills, decodes = _only(view, Role.PREFILL), _only(view, Role.DECODE)
    if not prefills or not decodes:
        return None, ""
    prefill, decode = prefill_pressure(prefills, slo), decode_pressure(decodes, slo)
    told = f"prefill pressure {prefill:.2f}, decode pressure {decode:.2f}"
    num_prefills, num_decodes = len(prefills), len(decodes)
    if _may_move(bounds, Role.DECODE, num_decodes, num_prefills):
        decode_after = decode * num_decodes / (num_decodes - 1)
        if prefill > 1.0 and decode_after < _MAX_DECODE_PRESSURE_AFTER:
            return Role.PREFILL, told
    if _may_move(bounds, Role.PREFILL, num_prefills, num_decodes):
        prefill_after = prefill * num_prefills / (num_prefills - 1)
        if decode >= 1.0 and prefill_after < _MAX_PREFILL_PRESSURE_AFTER:
            return Role.DECODE, told
    return None, told


def _may_move(
    bounds: dict[Role, RoleBounds], giver: Role, num_givers: int, num_takers: int
) -> bool:
    """One stays at least, whatever the bounds say."""
    keeps = num_givers - 1 >= max(bounds[giver].min_workers, 1)
    return keeps and num_takers + 1 <= bounds[_other(giver)].max_workers


def _only(view: FleetView, role: Role) -> list[WorkerView]:
    return [worker for worker in view.ready(role) if worker.info.role is role]


def _other(role: Role) -> Role:
    return Role.DECODE if role is Role.PREFILL else Role.PREFILL


def _work_left(worker: WorkerView) -> tuple[int, int]:
    return worker.num_decoding, worker.prefill_backlog_tokens
