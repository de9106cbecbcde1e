"""One pool of the autoscaler: what its policy reads of the fleet, and its standbys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pdray.core.request import WorkerId
from pdray.core.scaling import PlaceCounts, PoolTarget
from pdray.core.slo import Slo
from pdray.policy.scaling.base import PoolSetup, PoolView, ScalingPolicy
from pdray.policy.scaling.evaluate import PolicyMemory

from .fleet import Fleet
from .worker_record import WorkerRecord


class PoolScaling:
    """``pools`` are all of the application: workers of others that have got this pool's role count
    here, if it is the first with that role."""

    def __init__(self, setup: PoolSetup, pools: Sequence[PoolSetup]) -> None:
        self.setup = setup
        self.places = PlaceCounts()
        self.looked_at: float | None = None
        policy = setup.policy
        initial = setup.replicas if policy is None else policy.initial_replicas
        self.memory = PolicyMemory(target=initial)
        self._roles = {pool.name: pool.role for pool in pools}
        first = next(pool for pool in pools if pool.role is setup.role)
        self._is_home = first.name == setup.name

    @property
    def acting_policy(self) -> ScalingPolicy | None:
        """None where the number of workers is fixed, or the policy only says what it would do."""
        policy = self.setup.policy
        return None if policy is None or policy.is_dry_run else policy

    def is_due(self, now: float) -> bool:
        policy = self.setup.policy
        if policy is None:
            return False
        return self.looked_at is None or now - self.looked_at >= policy.metrics_interval_s

    def view(
        self, fleet: Fleet, slo: Slo, queue: tuple[int, int], requests_per_s: float
    ) -> PoolView:
        """``queue``: requests, and tokens of their prompts."""
        own = self._staying(fleet)
        active = [record for record in own if not record.is_standby]
        workers = [record for record in self._with_role(fleet) if record.is_ready]
        num_foreign = sum(record.info.pool != self.setup.name for record in workers)
        num_away = sum(not self._has_role(record) for record in active)
        return PoolView(
            name=self.setup.name,
            role=self.setup.role,
            workers=workers,
            loads=[fleet.prompt_load(record.info.worker_id) for record in workers],
            num_own=len(active),
            num_lent=num_away - num_foreign,
            places=self.places,
            num_queued=queue[0],
            queued_tokens=queue[1],
            requests_per_s=requests_per_s,
            is_stale=any(record.is_stale for record in own),
            slo=slo,
        )

    def num_standby(self, fleet: Fleet) -> int:
        return sum(record.is_standby for record in self._own(fleet))

    def settle_standbys(self, fleet: Fleet) -> None:
        """So many workers take work as the target says, as far as there are any; the others are
        warm, and wait."""
        policy = self.acting_policy
        if policy is None or not policy.standby_replicas:
            return
        own = self._staying(fleet)
        # Those that have work keep it; a standby was idle before.
        own.sort(key=lambda record: (record.is_standby, -_work_left(record)[0], record.number))
        for place, record in enumerate(own):
            is_standby = place >= self.memory.target
            if record.is_standby is not is_standby:
                fleet.set_standby(record.info.worker_id, is_standby)

    def target(self, fleet: Fleet, node_groups: tuple[str, ...]) -> PoolTarget:
        policy = self.acting_policy
        num_places = self.setup.replicas
        if policy is not None:
            num_places = self.memory.target + policy.standby_replicas
        return PoolTarget(
            pool=self.setup.name,
            num_places=num_places,
            node_groups=node_groups,
            leave_first=self._leave_first(fleet),
        )

    def _leave_first(self, fleet: Fleet) -> tuple[WorkerId, ...]:
        own = self._staying(fleet)
        own.sort(key=lambda record: (not record.is_standby, *_work_left(record), -record.number))
        return tuple(record.info.worker_id for record in own)

    def _own(self, fleet: Fleet) -> Iterator[WorkerRecord]:
        name = self.setup.name
        return (record for record in fleet.workers() if record.info.pool == name)

    def _staying(self, fleet: Fleet) -> list[WorkerRecord]:
        return [record for record in self._own(fleet) if not record.is_draining]

    def _with_role(self, fleet: Fleet) -> Iterator[WorkerRecord]:
        """Of this pool, and those of others that have got its role."""
        for record in fleet.workers():
            is_own = record.info.pool == self.setup.name
            is_flipped = record.info.role is not self._roles.get(record.info.pool)
            if self._has_role(record) and (is_own or (self._is_home and is_flipped)):
                yield record

    def _has_role(self, record: WorkerRecord) -> bool:
        return record.info.role is self.setup.role


def _work_left(record: WorkerRecord) -> tuple[int, int]:
    return record.num_decoding, record.prefill_backlog_tokens
