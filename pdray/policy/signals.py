"""What a pool is short of, by name: each signal reads a number and says how many workers would
bring it to its target.

A role's own signals come from what its phase is bound by: prefill by seconds of prompts to
compute, decode by memory and by how long a step takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pdray.core.registry import Registry
from pdray.core.scaling import Reading
from pdray.core.snapshot import Role, WorkerView
from pdray.core.step_time import StepTime
from pdray.policy.forecast import UNMEASURED, queued_prompts_s, step_time_of
from pdray.policy.scaling.base import PoolView

_BUSY_BACKLOG = 0.1
"""Of the TTFT target: with less to compute, it is not prompts that requests wait for."""
_BUSY_FULLNESS = 0.9
_GUESSED_CONTEXT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """``workers``: how many would have it at the target."""

    value: float
    workers: float


Signal = Callable[[PoolView, float], Measured]
"""Of a view and a target. A pool that has no worker is asked nothing."""

SIGNALS: Registry[Signal] = Registry("signal")

DEFAULT_TARGETS: Mapping[Role, Mapping[str, float]] = {
    Role.PREFILL: {"prefill_backlog": 0.5, "prefill_load": 0.85},
    Role.DECODE: {"decode_step": 0.7, "kv_utilization": 0.85, "batch_size": 0.9},
    Role.MIXED: {"prefill_backlog": 0.5, "mixed_load": 0.8, "kv_utilization": 0.85},
}
"""The signals of a role with their targets: shares of what is promised or of what there is. Tuned
on simulated days (benchmarks/autoscaling.py, seed 2). An engine keeps a batch smaller than its step
time allows on average, as single steps take longer: a target near 1 would never be reached."""

LOADS = frozenset({"prefill_load", "decode_step", "mixed_load", "kv_utilization", "batch_size"})
"""Signals that say what comes in, not what has piled up: a forecast may go on from them."""


def read_signals(view: PoolView, targets: Mapping[str, float]) -> tuple[Reading, ...]:
    """None of a pool without workers: there is nothing to measure."""
    if not view.workers:
        return ()
    readings = []
    for name, target in targets.items():
        measured = signal_of(name)(view, target)
        readings.append(
            Reading(signal=name, value=measured.value, target=target, workers=measured.workers)
        )
    return tuple(readings)


def signal_of(name: str) -> Signal:
    """``worker.X`` is the sum of what workers report as X in their snapshots, for a target of so
    much of it for each worker."""
    prefix, _, field = name.partition(".")
    if prefix == "worker":
        return lambda view, target: _per_worker(view, target, _reported(view.workers, field))
    return SIGNALS.get(name)


def _reported(workers: Iterable[WorkerView], field: str) -> float:
    snapshots = [worker.snapshot for worker in workers]
    return float(sum(getattr(snapshot, field) for snapshot in snapshots if snapshot is not None))


def _per_worker(view: PoolView, target: float, total: float) -> Measured:
    return Measured(total / len(view.workers), total / target)


@SIGNALS.register("prefill_backlog")
def prefill_backlog(view: PoolView, target: float) -> Measured:
    """Seconds of prompts that wait, for each worker; the target is a share of the TTFT."""
    total_s = sum(map(queued_prompts_s, view.workers))
    # Requests that wait elsewhere may wait for decode workers: then more prefill is no help.
    if total_s / len(view.workers) > _BUSY_BACKLOG * view.slo.ttft_s:
        total_s += view.queued_tokens * _mean_step_time(view).prefill_token_s
    return Measured(total_s / len(view.workers), total_s / (target * view.slo.ttft_s))


@SIGNALS.register("prefill_load")
def prefill_load(view: PoolView, target: float) -> Measured:
    """The share of workers' time that the prompts which arrive take."""
    return _per_worker(view, target, sum(view.loads))


@SIGNALS.register("decode_step")
def decode_step(view: PoolView, target: float) -> Measured:
    """How long a decode step takes; the target is a share of the ITL."""
    num_seats = _seats_in_time(view, target * view.slo.itl_s)
    num_decodes = _num_decodes(view)
    step_s = sum(_step_s(worker) for worker in view.workers) / len(view.workers)
    return Measured(step_s, num_decodes / num_seats)


@SIGNALS.register("mixed_load")
def mixed_load(view: PoolView, target: float) -> Measured:
    """What prompts take of workers that do both phases, and what decodes need of their steps."""
    total = sum(view.loads) + _num_decodes(view) / _seats_in_time(view, view.slo.itl_s)
    return _per_worker(view, target, total)


@SIGNALS.register("kv_utilization")
def kv_utilization(view: PoolView, target: float) -> Measured:
    """Of workers' blocks, those in use: 0..1."""
    return _per_worker(view, target, sum(worker.kv_utilization for worker in view.workers))


@SIGNALS.register("batch_size")
def batch_size(view: PoolView, target: float) -> Measured:
    """Requests that run or wait, of those that fit in a batch; the target is a share of it."""
    seats = sum(worker.info.max_batch_size for worker in view.workers) / len(view.workers)
    num_decodes = _num_decodes(view)
    return Measured(num_decodes / (seats * len(view.workers)), num_decodes / (target * seats))


@SIGNALS.register("queue_length")
def queue_length(view: PoolView, target: float) -> Measured:
    """Requests in a worker's hands, and those that wait for one: Ray Serve's "ongoing requests"."""
    return _per_worker(view, target, _running_and_waiting(view.workers) + view.num_queued)


@SIGNALS.register("request_rate")
def request_rate(view: PoolView, target: float) -> Measured:
    """Requests a second."""
    return _per_worker(view, target, view.requests_per_s)


def _num_decodes(view: PoolView) -> float:
    """And those that wait for a seat, where it is seats that they wait for."""
    fullness = sum(worker.fullness for worker in view.workers) / len(view.workers)
    queued = view.num_queued if fullness > _BUSY_FULLNESS else 0
    return _running_and_waiting(view.workers) + queued


def _running_and_waiting(workers: Iterable[WorkerView]) -> float:
    return _reported(workers, "num_running") + _reported(workers, "num_waiting")


def _seats_in_time(view: PoolView, step_s: float) -> float:
    """Decodes of a worker whose step takes no longer, on average over workers; at least one."""
    return sum(_seats_of(worker, step_s) for worker in view.workers) / len(view.workers)


def _seats_of(worker: WorkerView, step_s: float) -> float:
    step_time = step_time_of(worker)
    each_s = step_time.decode_s + _context_tokens(worker) * step_time.context_token_s
    seats = (step_s - step_time.base_s) / each_s if each_s > 0.0 else float("inf")
    return max(min(seats, worker.info.max_batch_size), 1.0)


def _context_tokens(worker: WorkerView) -> float:
    if worker.num_decoding == 0:
        return _GUESSED_CONTEXT_TOKENS
    return worker.num_decoding_tokens / worker.num_decoding


def _step_s(worker: WorkerView) -> float:
    snapshot = worker.snapshot
    if snapshot is None or snapshot.num_running == 0:
        return 0.0
    step_time = step_time_of(worker)
    each_s = step_time.decode_s + _context_tokens(worker) * step_time.context_token_s
    return step_time.base_s + snapshot.num_running * each_s


def _mean_step_time(view: PoolView) -> StepTime:
    known = [worker for worker in view.workers if worker.step_time is not None]
    return step_time_of(known[0]) if known else UNMEASURED
