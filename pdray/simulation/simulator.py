"""A fleet of simulated workers under a real control plane, until the last request has ended.

The control plane is told what the Ray controller tells it (cluster/controller.py), and what it
decides is done: nothing here chooses a worker."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pdray.control.controller import ControlPlane
from pdray.control.journal import Journal
from pdray.core.placement import KeptPrefix, Placement, PlacementAsk, Queued, Refusal
from pdray.core.prefix_report import PREFIX_NAME_BYTES
from pdray.core.request import WorkerId
from pdray.core.snapshot import WorkerInfo
from pdray.policy.placement import PLACEMENT
from pdray.workload.request import WorkloadRequest

from .control_scaler import ControlScaler
from .gaps import GapCounts
from .kv_blocks import PIECE_TOKENS
from .pools import SimulatedPools
from .prefixes import NAMED_TOKENS, prefix_names, prefix_report
from .profile import WorkerProfile
from .reporting import snapshot_of
from .result import SimulationResult
from .scaler import ScalingView
from .scenario import Scenario, check
from .sequence import Outcome, SimulatedRequest, SimulatedSequence
from .timeline import Timeline
from .transfers import Handoff, Transfers
from .worker import SimulatedWorker

FRONTEND = "frontend"
_RENEW_S = 1.0


def simulate(scenario: Scenario, journal: Journal | None = None) -> SimulationResult:
    """The same scenario gives the same result. ``journal`` hears all that the control plane is
    told. Raises ConfigError for a scenario that the profile does not cover."""
    return Simulator(scenario, journal).run()


@dataclass(slots=True)
class _News:
    """What happened in the middle of workers' calls, for after them."""

    ended: list[SimulatedRequest] = field(default_factory=list)
    lost: dict[SimulatedSequence, SimulatedWorker] = field(default_factory=dict)
    roomy: dict[WorkerId, None] = field(default_factory=dict)


class Simulator:
    def __init__(self, scenario: Scenario, journal: Journal | None = None) -> None:
        check(scenario)
        rng = random.Random(scenario.seed)
        policy = PLACEMENT.get(scenario.placement)(scenario.slo, random.Random(rng.random()))
        self.control = ControlPlane(scenario.control, policy)
        self.control.journal = journal
        self.timeline = Timeline()
        self.pools = SimulatedPools(
            scenario.pools,
            scenario.profile,
            self.timeline,
            random.Random(rng.random()),
            self._make_worker,
            self,
        )
        self._control_scaler = ControlScaler(self.control, self.pools, scenario.unix_time)
        self.workers: dict[WorkerId, SimulatedWorker] = {}
        self._scenario = scenario
        self._profiles: dict[WorkerId, WorkerProfile] = {}
        self._transfers = Transfers(scenario.profile)
        self._gaps = GapCounts()
        self._arrivals = iter(scenario.requests)
        self._has_all_arrived = False
        self._open: dict[str, SimulatedRequest] = {}
        self._handoffs: dict[str, Handoff] = {}
        self._refusing: dict[WorkerId, None] = {}
        self._num_reports: dict[WorkerId, int] = {}
        self._news = _News()
        self._has_news = False
        self._num_arrived = 0
        self._num_prompt_tokens = 0
        self._num_preemptions = 0
        self._last_arrival_at = 0.0
        self._outcomes: list[Outcome] = []

    def run(self) -> SimulationResult:
        """To be called once."""
        self.control.resume(FRONTEND, [], 0.0)
        self.pools.begin()
        self._tick()
        self._renew()
        self._scale()
        self._await_arrival()
        while not self._is_over and self.timeline.step():
            pass
        unfinished = [each.outcome(None, "not finished") for each in self._open.values()]
        preemptions = sum(worker.num_preemptions for worker in self.workers.values())
        return SimulationResult(
            slo=self._scenario.slo,
            outcomes=(*self._outcomes, *unfinished),
            itl_s=self._gaps.distribution(),
            sizes=tuple(self.pools.sizes),
            usage=self.pools.usage(),
            ended_at=self.timeline.now,
            num_placed_by_how=self.control.num_placed_by_how,
            num_preemptions=self._num_preemptions + preemptions,
            decisions=tuple(self._control_scaler.decisions),
        )

    @property
    def _is_over(self) -> bool:
        if not self._has_all_arrived:
            return False
        now = self.timeline.now
        if not self._open:
            return now >= self._scenario.duration_s
        return now > self._last_arrival_at + self._scenario.patience_s

    # Requests, as a frontend sees them

    def _await_arrival(self) -> None:
        request = next(self._arrivals, None)
        if request is None:
            self._has_all_arrived = True
            return
        self.timeline.at(request.arrival_s, lambda: self._arrive(request))

    def _arrive(self, request: WorkloadRequest) -> None:
        live = _live(request, f"r{self._num_arrived}", self._scenario.max_tokens)
        self._num_arrived += 1
        self._num_prompt_tokens += request.prompt_tokens
        self._last_arrival_at = request.arrival_s
        self._open[live.request_id] = live
        self._place(live)
        self._await_arrival()

    def _place(self, request: SimulatedRequest) -> None:
        (answer,) = self.control.place(FRONTEND, [request.ask], self.timeline.now)
        if not isinstance(answer, Queued):
            self._take(answer)
        self._deliver()

    def _deliver(self) -> None:
        for decision in self.control.take_decisions():
            self._take(decision)
        self.control.take_role_flips()

    def _take(self, answer: Placement | Refusal) -> None:
        request = self._open[answer.request_id]
        if isinstance(answer, Refusal):
            del self._open[answer.request_id]
            self._outcomes.append(request.outcome(None, answer.reason))
            return
        assert answer.prefill is not None, "both phases are placed"
        request.candidates = tuple(each.worker_id for each in answer.decode_candidates)
        prefill_id = answer.prefill.worker_id
        is_lent = prefill_id not in request.candidates
        self.workers[prefill_id].submit(SimulatedSequence(request, is_lent=is_lent))

    # Of workers, in the middle of their calls

    def reserve(self, worker_id: WorkerId, seq: SimulatedSequence) -> bool:
        source, request = self.workers[worker_id], seq.request
        targets = [self.workers[each] for each in request.candidates if each in self.workers]
        for target in targets:
            reserved = target.reserve(request)
            if reserved is not None:
                handoff = Handoff(source, seq, target, reserved, num_read=reserved.num_computed)
                self._handoffs[request.request_id] = handoff
                self._transfers.publish(handoff, self.timeline.now)
                return True
        if all(target.is_draining for target in targets):
            self._news.lost[seq] = source
            self.has_room(worker_id)
        self._refusing[worker_id] = None
        return False

    def chunk_done(self, worker_id: WorkerId, seq: SimulatedSequence) -> None:
        handoff = self._handoffs.get(seq.request.request_id)
        if handoff is not None:
            read_at = self._transfers.publish(handoff, self.timeline.now)
            if seq.num_uncomputed == 0 and seq.request.num_left:
                self.timeline.at(read_at, lambda: self._arrived(handoff))
                return
        if seq.num_uncomputed == 0:
            # There is nothing to decode.
            self.timeline.after(0.0, lambda: self._end_early(self.workers[worker_id], seq))

    def finished(self, worker_id: WorkerId, seq: SimulatedSequence) -> None:
        self._news.ended.append(seq.request)
        self.has_room(worker_id)

    def has_room(self, worker_id: WorkerId) -> None:
        self._news.roomy[worker_id] = None
        self._expect_news()

    def _arrived(self, handoff: Handoff) -> None:
        del self._handoffs[handoff.lent.request.request_id]
        handoff.source.read(handoff.lent)
        handoff.target.arrived(handoff.reserved)

    def _end_early(self, source: SimulatedWorker, lent: SimulatedSequence) -> None:
        handoff = self._handoffs.pop(lent.request.request_id, None)
        source.read(lent)
        if handoff is not None:
            handoff.target.forget(handoff.reserved)
        self._news.ended.append(lent.request)
        self._expect_news()

    def _expect_news(self) -> None:
        if not self._has_news:
            self._has_news = True
            self.timeline.after(0.0, self._hear_news)

    def _hear_news(self) -> None:
        news, self._news, self._has_news = self._news, _News(), False
        # Before anybody is placed anew, as that looks at them again.
        for seq, source in news.lost.items():
            source.withdraw(seq)
        if news.ended:
            self._end(news.ended)
        for seq in news.lost:
            self.control.finished(FRONTEND, [seq.request.request_id], self.timeline.now)
            self._place(seq.request)
        roomy = [self.workers[each] for each in news.roomy if each in self.workers]
        for worker in roomy:
            worker.kick()
            self.pools.look(worker)
        self._ask_again()

    def _ask_again(self) -> None:
        """Prompts that nobody had room to decode."""
        refusing, self._refusing = self._refusing, {}
        for worker_id in refusing:
            worker = self.workers.get(worker_id)
            if worker is not None and worker.is_refused:
                self._refusing[worker_id] = None
                worker.look()

    def _end(self, requests: Iterable[SimulatedRequest]) -> None:
        now = self.timeline.now
        ids = [request.request_id for request in requests]
        self.control.finished(FRONTEND, ids, now, list(_kept(requests)))
        for request in requests:
            del self._open[request.request_id]
            self._outcomes.append(request.outcome(now))
        self._deliver()

    # Of the pools, in the middle of their calls

    def _make_worker(self, info: WorkerInfo, profile: WorkerProfile) -> SimulatedWorker:
        self._profiles[info.worker_id] = profile
        return SimulatedWorker(
            info, profile, self.timeline, self, self._gaps, itl_s=self._scenario.slo.itl_s
        )

    def joined(self, worker: SimulatedWorker) -> None:
        self.workers[worker.info.worker_id] = worker
        self.control.worker_joined(worker.info, self.timeline.now)
        self._deliver()
        self._tell(worker)

    def draining(self, worker: SimulatedWorker) -> None:
        self.control.worker_draining(worker.info.worker_id, self.timeline.now)
        self._deliver()
        self._expect_news()

    def left(self, worker: SimulatedWorker) -> None:
        worker_id = worker.info.worker_id
        self._num_preemptions += worker.num_preemptions
        del self.workers[worker_id], self._profiles[worker_id]
        self._num_reports.pop(worker_id, None)
        self._transfers.forget(worker_id)
        self.control.worker_left(worker_id, self.timeline.now)
        self._deliver()

    # Time

    def _tell(self, worker: SimulatedWorker) -> None:
        worker_id, now = worker.info.worker_id, self.timeline.now
        if self.workers.get(worker_id) is not worker:
            return
        self._tell_prefixes(worker, now)
        reads = self._transfers.costs(worker)
        step_time = self._profiles[worker_id].step_time
        self.control.snapshot(snapshot_of(worker, step_time, reads, now), now)
        self._deliver()
        self.timeline.after(self._scenario.snapshot_s, lambda: self._tell(worker))

    def _tell_prefixes(self, worker: SimulatedWorker, now: float) -> None:
        added, removed = worker.blocks.take_told()
        if not added and not removed:
            return
        worker_id = worker.info.worker_id
        number = self._num_reports.get(worker_id, 0)
        self._num_reports[worker_id] = number + 1
        report = prefix_report(number, added, removed, worker.info.block_size)
        is_known = self.control.prefixes_told(worker_id, report, now)
        assert is_known, f"{worker_id}: report {number} does not follow"

    def _tick(self) -> None:
        self.control.tick(self.timeline.now)
        self._deliver()
        self.timeline.after(self._scenario.tick_s, self._tick)

    def _renew(self) -> None:
        self.control.frontend_seen(FRONTEND, self.timeline.now)
        self.timeline.after(_RENEW_S, self._renew)

    def _scale(self) -> None:
        scaler, now = self._scenario.scaler, self.timeline.now
        if scaler is not None:
            for pool, num_workers in scaler.look(self._view(), now).items():
                self.pools.set_desired(pool, num_workers, now)
            self.timeline.after(self._scenario.scaler_every_s, self._scale)
        elif self._scenario.control.scaling is not None:
            self._control_scaler.look(now)
            self._deliver()
            self.timeline.after(self._scenario.scaler_every_s, self._scale)

    def _view(self) -> ScalingView:
        return ScalingView(
            pools={name: self.pools.view(name) for name in self.pools.plans},
            num_queued=self.control.num_queued,
            num_arrived=self._num_arrived,
            num_prompt_tokens=self._num_prompt_tokens,
            slo=self._scenario.slo,
            control=self.control,
        )


def _live(request: WorkloadRequest, request_id: str, max_tokens: int | None) -> SimulatedRequest:
    # The last piece of a trace's may be shorter than the others.
    piece_ids = request.prefix_ids[: request.prompt_tokens // PIECE_TOKENS]
    ask = PlacementAsk(
        request_id=request_id,
        num_prompt_tokens=request.prompt_tokens,
        max_tokens=max(request.output_tokens, max_tokens or 0),
        prefix_names=prefix_names(piece_ids),
    )
    return SimulatedRequest(
        request_id=request_id,
        arrived_at=request.arrival_s,
        num_prompt_tokens=request.prompt_tokens,
        num_output_tokens=request.output_tokens,
        ask=ask,
        piece_ids=piece_ids,
    )


def _kept(requests: Iterable[SimulatedRequest]) -> Iterator[KeptPrefix]:
    for request in requests:
        if request.ask.prefix_names and request.decoded_on is not None:
            names = request.ask.prefix_names
            yield KeptPrefix(
                name=names[-PREFIX_NAME_BYTES:],
                num_tokens=len(names) // PREFIX_NAME_BYTES * NAMED_TOKENS,
                worker_id=request.decoded_on,
            )
