"""What the controller hears of latencies and transfers, kept for some minutes."""

from __future__ import annotations

from collections.abc import Mapping

from pdray.config import PdrayConfig
from pdray.control.controller import ControlPlane
from pdray.core.overview import Moment, Overview, PairOverview, Percentiles, WorkerOverview
from pdray.core.request import WorkerId
from pdray.core.scaling import TimedDecision
from pdray.core.snapshot import WorkerSnapshot
from pdray.core.step_time import StepWork
from pdray.metrics.window import LatencyCounts, SlotCounts, percentiles_of

from .messages import ControllerStatus, WorkerStatus

_SLOT_S = 5.0
_NUM_SLOTS = 120
_WINDOW_SLOTS = 12

Pair = tuple[str, str]


class Observations:
    """Of one controller's life. Times are its clock's."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._ttft: SlotCounts[int] = SlotCounts(_SLOT_S, _NUM_SLOTS)
        self._itl: SlotCounts[int] = SlotCounts(_SLOT_S, _NUM_SLOTS)
        self._read_bytes: SlotCounts[Pair] = SlotCounts(_SLOT_S, _NUM_SLOTS)
        self._read_before: dict[WorkerId, Mapping[str, int]] = {}

    def heard_latencies(self, counts: LatencyCounts, now: float) -> None:
        self._ttft.add(now, counts.ttft)
        self._itl.add(now, counts.itl)

    def heard_snapshot(self, pool: str, snapshot: WorkerSnapshot, now: float) -> None:
        """What a worker read before it was first heard of is not of late."""
        read = {each.source_pool: each.num_bytes for each in snapshot.bytes_read}
        before = self._read_before.get(snapshot.worker_id, read)
        self._read_before[snapshot.worker_id] = read
        new = {(source, pool): num - before.get(source, 0) for source, num in read.items()}
        self._read_bytes.add(now, {pair: num for pair, num in new.items() if num > 0})

    def worker_left(self, worker_id: WorkerId) -> None:
        self._read_before.pop(worker_id, None)

    def overview(
        self,
        config: PdrayConfig,
        control: ControlPlane,
        status: ControllerStatus,
        scaling: tuple[TimedDecision, ...],
        now: float,
    ) -> Overview:
        window_s = self._window_s(now)
        ttft = percentiles_of(self._ttft.total(now, _WINDOW_SLOTS))
        itl = percentiles_of(self._itl.total(now, _WINDOW_SLOTS))
        requests_per_s, tokens_per_s = _rates(ttft, itl, window_s)
        read = self._read_bytes.total(now, _WINDOW_SLOTS)
        return Overview(
            application=status.application,
            mode=config.mode,
            placement=config.controller.placement,
            slo_ttft_s=config.slo.ttft_s,
            slo_itl_s=config.slo.itl_s,
            window_s=window_s,
            workers=tuple(_worker(each, config, control) for each in status.workers),
            pairs=tuple(
                PairOverview(
                    source=source,
                    target=target,
                    bytes_per_s=num_bytes / window_s,
                    num_bytes=num_bytes,
                )
                for (source, target), num_bytes in sorted(read.items())
            ),
            num_frontends=len(status.frontend_ids),
            num_queued=status.num_queued,
            num_in_flight=status.num_in_flight,
            max_in_flight=status.max_in_flight,
            num_placed_by_how=status.num_placed_by_how,
            idle_pools=status.idle_pools,
            scaling=scaling,
            ttft=ttft,
            itl=itl,
            requests_per_s=requests_per_s,
            tokens_per_s=tokens_per_s,
            history=self._history(now),
        )

    def _window_s(self, now: float) -> float:
        """The last slots' length, as far as they are over and this life goes back."""
        full_s = (_WINDOW_SLOTS - 1) * _SLOT_S + now % _SLOT_S
        return max(min(full_s, now - self._since), 1e-3)

    def _history(self, now: float) -> tuple[Moment, ...]:
        series = zip(
            self._ttft.series(now), self._itl.series(now), self._read_bytes.series(now), strict=True
        )
        moments = []
        for number, (ttft_counts, itl_counts, read) in enumerate(series, start=1):
            ttft, itl = percentiles_of(ttft_counts), percentiles_of(itl_counts)
            requests_per_s, tokens_per_s = _rates(ttft, itl, _SLOT_S)
            moments.append(
                Moment(
                    ago_s=(_NUM_SLOTS - number) * _SLOT_S + now % _SLOT_S,
                    ttft_p50_s=None if ttft is None else ttft.p50_s,
                    ttft_p99_s=None if ttft is None else ttft.p99_s,
                    itl_p50_s=None if itl is None else itl.p50_s,
                    itl_p99_s=None if itl is None else itl.p99_s,
                    requests_per_s=requests_per_s,
                    tokens_per_s=tokens_per_s,
                    bytes_per_s=sum(read.values()) / _SLOT_S,
                )
            )
        return tuple(moments)


def _rates(
    ttft: Percentiles | None, itl: Percentiles | None, seconds: float
) -> tuple[float, float]:
    """Requests and tokens a second: every request has one first token, every other one a gap."""
    num_first, num_more = (0 if each is None else each.count for each in (ttft, itl))
    return num_first / seconds, (num_first + num_more) / seconds


def _worker(status: WorkerStatus, config: PdrayConfig, control: ControlPlane) -> WorkerOverview:
    record = None if status.worker_id is None else control.fleet.get(status.worker_id)
    snapshot = None if record is None else record.snapshot
    role = status.role if record is None else record.info.role
    return WorkerOverview(
        pool=status.pool,
        index=status.index,
        node_group=status.node_group,
        role=str(role.name).lower(),
        state="stale" if record is not None and record.is_stale else status.state,
        worker_id=status.worker_id,
        note=status.last_failure or ("" if record is not None else status.progress),
        num_running=0 if snapshot is None else snapshot.num_running,
        num_waiting=0 if snapshot is None else snapshot.num_waiting,
        max_batch_size=config.engine_settings(status.pool, status.node_group).max_batch_size
        if record is None
        else record.info.max_batch_size,
        prefill_backlog_tokens=0 if record is None else record.prefill_backlog_tokens,
        kv_utilization=0.0 if record is None else record.kv_utilization,
        prefix_hit_ratio=_hit_ratio(snapshot),
        step_s=_step_s(snapshot),
    )


def _hit_ratio(snapshot: WorkerSnapshot | None) -> float | None:
    if snapshot is None or snapshot.prefix_query_tokens == 0:
        return None
    return snapshot.prefix_hit_tokens / snapshot.prefix_query_tokens


def _step_s(snapshot: WorkerSnapshot | None) -> float | None:
    if snapshot is None or snapshot.step_time is None:
        return None
    return snapshot.step_time.step_s(StepWork(num_decodes=max(snapshot.num_running, 1)))
