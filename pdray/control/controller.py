"""The brain of pdray: events in, decisions out, the same in Ray, in one process and in a test.

It knows neither clock nor network: every event carries ``now``, in seconds of one monotonic
clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdray.core.mode import Mode
from pdray.core.placement import (
    InFlight,
    KeptPrefix,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    ServingLimits,
    WorkerAddress,
)
from pdray.core.prefix_report import PrefixReport
from pdray.core.request import WorkerId
from pdray.core.scaling import PlaceCounts, PoolTarget, ScalingDecision
from pdray.core.slo import Slo
from pdray.core.snapshot import Role, WorkerInfo, WorkerSnapshot
from pdray.policy.admission import max_in_flight
from pdray.policy.placement.base import PlacementPolicy
from pdray.policy.roles import RoleBounds, RoleFlip
from pdray.policy.scaling.base import ScalingSetup

from .autoscaler import Autoscaler
from .fleet import Fleet
from .in_flight import InFlightTable, PlacedRequest
from .journal import Journal, event
from .layout_mismatch import layout_mismatch
from .moves import choose_target
from .roles import Roles
from .router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """``frontend_timeout_s``: a frontend that says nothing for so long is forgotten.
    ``stale_after_s``: a worker without a snapshot for so long gets no new work. ``phases``: what
    requests are placed for, and ``mode`` how. ``max_known_prefixes``: of so many ends of requests
    it is known which worker has their KV before that says so itself, ``max_known_blocks`` of
    workers' prefix caches are known. ``refuse_after_s``: a prompt that would have to wait for
    longer before it is computed is refused at once. With ``role_bounds``, of both roles, workers
    change their role where ``slo`` is better kept then. ``scaling`` says how many workers each pool
    should have."""

    max_queued_requests: int
    queue_timeout_s: float
    frontend_timeout_s: float = 10.0
    stale_after_s: float = 10.0
    phases: Role = Role.MIXED
    mode: Mode = Mode.POOLED
    refuse_after_s: float | None = None
    role_bounds: dict[Role, RoleBounds] | None = None
    slo: Slo | None = None
    scaling: ScalingSetup | None = None
    max_known_prefixes: int = 65536
    max_known_blocks: int = 10_000_000


@dataclass(slots=True)
class _FrontendRecord:
    seen_at: float
    has_resumed: bool


class ControlPlane:
    """Call ``take_decisions`` after every event: it has the answers to queued requests.

    It is a function of its events: another one of the same config, told the same, decides the
    same. ``journal`` hears of every event when it is over."""

    def __init__(self, config: ControlConfig, policy: PlacementPolicy) -> None:
        self.journal: Journal | None = None
        self._config = config
        self._fleet = Fleet(
            config.phases,
            config.mode,
            max_known_prefixes=config.max_known_prefixes,
            max_known_blocks=config.max_known_blocks,
        )
        self._table = InFlightTable(self._fleet)
        self._router = Router(
            policy,
            self._fleet,
            self._table,
            max_queued=config.max_queued_requests,
            refuse_after_s=config.refuse_after_s,
        )
        self._frontends: dict[str, _FrontendRecord] = {}
        self._roles: Roles | None = None
        if config.role_bounds is not None:
            assert config.slo is not None, "roles change for an SLO"
            self._roles = Roles(self._fleet, config.slo, config.role_bounds)
        self._autoscaler: Autoscaler | None = None
        if config.scaling is not None:
            self._autoscaler = Autoscaler(self._fleet, config.scaling)
        self._role_flips: list[RoleFlip] = []
        self._decisions: list[Placement | Refusal] = []

    # Events of workers

    @event
    def worker_joined(self, info: WorkerInfo, now: float) -> None:
        """A worker is ready to take work. Told again, it changes nothing."""
        self._fleet.add(info, now)
        self._place_queued(now)

    @event
    def pair_met(self, one: WorkerId, other: WorkerId, failure: str | None, now: float) -> None:
        """Two workers have tried to reach each other; with a ``failure`` no request is placed on
        both, until a later meeting has none."""
        self._fleet.pair_met(one, other, failure)
        self._place_queued(now)

    @event
    def worker_draining(self, worker_id: WorkerId, now: float) -> None:
        self._fleet.drain(worker_id)
        self._place_queued(now)

    @event
    def worker_left(self, worker_id: WorkerId, now: float) -> None:
        """Its requests stay in flight until their frontends say otherwise."""
        self._fleet.remove(worker_id)
        self._place_queued(now)

    @event
    def snapshot(self, snapshot: WorkerSnapshot, now: float) -> None:
        self._fleet.update(snapshot, now)
        self._place_queued(now)

    @event
    def prefixes_told(self, worker_id: WorkerId, report: PrefixReport, now: float) -> bool:
        """What has come into a worker's prefix cache, and what has gone. False asks it to start
        again: this is not what follows on what is known of it."""
        return self._fleet.prefixes_told(worker_id, report)

    # Events of frontends

    @event
    def place(
        self, frontend_id: str, asks: Sequence[PlacementAsk], now: float
    ) -> list[Placement | Queued | Refusal]:
        """Answers in the order of ``asks``. An ask repeated gets its answer again; one that is
        to be placed anew must be reported as finished first."""
        self._frontend(frontend_id, now)
        if self._autoscaler is not None:
            self._autoscaler.arrived(len(asks), now)
        return [self._router.place(frontend_id, ask, now) for ask in asks]

    @event
    def move(
        self, frontend_id: str, asks: Sequence[MoveAsk], now: float
    ) -> list[WorkerAddress | None]:
        """Who could go on with decodes that have to leave their workers, in the order of ``asks``;
        from here on each counts as that one's. None where nobody can now."""
        self._frontend(frontend_id, now)
        return [self._router.move(frontend_id, ask) for ask in asks]

    @event
    def finished(
        self,
        frontend_id: str,
        request_ids: Sequence[str],
        now: float,
        kept: Sequence[KeptPrefix] = (),
    ) -> None:
        """Ended, cancelled or given up: no longer in flight, nor queued. ``kept`` is what they
        left in workers' prefix caches."""
        self._fleet.prefixes_kept(kept)
        for request_id in request_ids:
            refusal = self._router.give_up(frontend_id, request_id, now)
            if refusal is not None:
                self._decisions.append(refusal)
            placed = self._table.get(request_id)
            if placed is not None and placed.frontend_id == frontend_id:
                self._table.finish(request_id, now)
        self._place_queued(now)

    @event
    def frontend_seen(self, frontend_id: str, now: float) -> bool:
        """False asks for a ``resume``: what this frontend has in flight is not known here."""
        return self._frontend(frontend_id, now).has_resumed

    @event
    def resume(self, frontend_id: str, in_flight: Sequence[InFlight], now: float) -> None:
        """All that a frontend has in flight: after this control plane was remade, or what the
        two told each other was lost. What is not among it has ended."""
        self._frontend(frontend_id, now).has_resumed = True
        told = {request.ask.request_id for request in in_flight}
        for request_id in self._table.of_frontend(frontend_id):
            if request_id not in told:
                self._table.remove(request_id)
        known = {*self._router.queued_of(frontend_id), *self._table.of_frontend(frontend_id)}
        for request in in_flight:
            if request.ask.request_id not in known:
                self._table.add(
                    PlacedRequest(
                        request_id=request.ask.request_id,
                        frontend_id=frontend_id,
                        num_prompt_tokens=request.ask.num_prompt_tokens,
                        prefill_id=request.prefill_id,
                        decode_id=request.decode_id,
                        placement=None,
                    )
                )
        self._place_queued(now)

    @event
    def frontend_gone(self, frontend_id: str, now: float) -> None:
        """It owns nothing any more: workers see for themselves that its link is gone."""
        self._forget(frontend_id, now)
        self._place_queued(now)

    # Events of pools

    @event
    def places_told(self, pool: str, places: PlaceCounts, now: float) -> None:
        """What a pool has besides its workers."""
        if self._autoscaler is not None:
            self._autoscaler.places_told(pool, places)

    @event
    def places_found(self, pool: str, num_places: int, now: float) -> None:
        """So many workers lived when this control plane was made: its pool starts with them."""
        if self._autoscaler is not None:
            self._autoscaler.places_found(pool, num_places)

    # Time, and what came of it all

    @event
    def scale(self, unix_time: float, now: float) -> list[ScalingDecision]:
        """Looks at the pools whose time has come; every second or so."""
        if self._autoscaler is None:
            return []
        decisions = self._autoscaler.look(
            self._router.num_queued, self._router.queued_tokens, unix_time, now
        )
        self._place_queued(now)
        return decisions

    @event
    def tick(self, now: float) -> None:
        """What time alone brings about; a few times a second."""
        self._fleet.tick(now, self._config.stale_after_s)
        for frontend_id, record in list(self._frontends.items()):
            if now - record.seen_at > self._config.frontend_timeout_s:
                self._forget(frontend_id, now)
        flip = None if self._roles is None else self._roles.tick(now)
        if flip is not None:
            self._role_flips.append(flip)
        self._place_queued(now)
        queued_before = now - self._config.queue_timeout_s
        self._decisions += self._router.time_out(queued_before, now)

    def take_decisions(self) -> list[Placement | Refusal]:
        """The answers to queued requests since the last call, in the order they were made."""
        decisions, self._decisions = self._decisions, []
        return decisions

    def take_role_flips(self) -> list[RoleFlip]:
        """Those made since the last call; workers need not be told."""
        flips, self._role_flips = self._role_flips, []
        return flips

    @property
    def num_outcomes(self) -> tuple[int, int]:
        """Decisions and flips that nobody has taken yet."""
        return len(self._decisions), len(self._role_flips)

    def outcomes_since(
        self, num_outcomes: tuple[int, int]
    ) -> tuple[Sequence[Placement | Refusal], Sequence[RoleFlip]]:
        """Those that came after there were so many; nobody may have taken any since."""
        num_decisions, num_flips = num_outcomes
        return self._decisions[num_decisions:], self._role_flips[num_flips:]

    def watch(self, watcher: Callable[[PlacementPolicy], PlacementPolicy]) -> None:
        """Puts something round the policy that sees what it is asked, and answers as it does."""
        self._router.policy = watcher(self._router.policy)

    # What is so

    def pool_targets(self) -> tuple[PoolTarget, ...]:
        """What the pools should have now; none where nothing is scaled."""
        return () if self._autoscaler is None else self._autoscaler.targets()

    @property
    def desired_workers(self) -> dict[str, int]:
        """What each pool's policy wants, whether or not it may act."""
        return {} if self._autoscaler is None else self._autoscaler.desired

    def limits(self) -> ServingLimits | None:
        """None while no request can be placed, nor brings the workers that it needs."""
        return self._fleet.limits() if self.can_place else None

    def find_target(self, source: WorkerInfo | None, ask: MoveAsk) -> WorkerAddress | None:
        """Who could go on with a decode of another generation's, whose worker is not known here
        unless ``source`` is None."""
        if source is None:
            record = self._fleet.get(ask.source_id)
            source = None if record is None else record.info
        target = None if source is None else choose_target(self._fleet, source, ask)
        return None if target is None else target.info.address

    @property
    def can_place(self) -> bool:
        """Whether there is a worker for each phase, or will be as soon as somebody asks."""
        if self._fleet.has_pair:
            return True
        goes_to_none = self._autoscaler is not None and self._autoscaler.may_have_none
        return goes_to_none and self._fleet.limits() is not None

    def layout_mismatch(self) -> str | None:
        """Why some workers can never work together; None where all can."""
        return layout_mismatch(worker.info for worker in self._fleet.workers())

    @property
    def holds_kv(self) -> bool:
        """Whether a worker still holds blocks that somebody may come for, or is reading."""
        snapshots = [worker.snapshot for worker in self._fleet.workers()]
        return any(s.num_held_blocks + s.num_quarantined_blocks for s in snapshots if s is not None)

    @property
    def num_queued(self) -> int:
        return self._router.num_queued

    @property
    def num_placed_by_how(self) -> dict[str, int]:
        """Requests so far: ``disaggregated``, or by why one worker does both phases."""
        return dict(self._router.counts.by_how)

    def idle_pools(self, now: float) -> list[str]:
        """Pools with workers that take work, and get none while others do."""
        ready = (worker for worker in self._fleet.workers() if worker.is_ready)
        return self._router.counts.idle((worker.info.pool for worker in ready), now)

    @property
    def num_in_flight(self) -> int:
        return len(self._table)

    @property
    def max_in_flight(self) -> int:
        return max_in_flight(self._fleet)

    @property
    def frontend_ids(self) -> list[str]:
        return list(self._frontends)

    @property
    def fleet(self) -> Fleet:
        """To be read only."""
        return self._fleet

    def check_integrity(self) -> None:
        """Asserts that the accounts agree with each other."""
        self._fleet.check_integrity()
        self._table.check_integrity()
        self._router.check_integrity()

    def _frontend(self, frontend_id: str, now: float) -> _FrontendRecord:
        record = self._frontends.get(frontend_id)
        if record is None:
            record = self._frontends[frontend_id] = _FrontendRecord(seen_at=now, has_resumed=False)
        record.seen_at = now
        return record

    def _forget(self, frontend_id: str, now: float) -> None:
        self._frontends.pop(frontend_id, None)
        for request_id in self._router.queued_of(frontend_id):
            refusal = self._router.give_up(frontend_id, request_id, now)
            assert refusal is not None
            self._decisions.append(refusal)
        for request_id in self._table.of_frontend(frontend_id):
            self._table.remove(request_id)

    def _place_queued(self, now: float) -> None:
        self._decisions += self._router.place_queued(now)
