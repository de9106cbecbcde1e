"""The pair of workers, or the one, that costs least: its own request and all that run already.

A request's cost is the time it waits for its first token, for the handoff and for its other
tokens, and what it takes from everybody else meanwhile: prompts delay those that decode on the
same worker, a fuller batch makes every step longer. Choices that keep the SLO go before others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdray.core.mode import Mode
from pdray.core.placement import PlacementAsk, Together
from pdray.core.request import WorkerId
from pdray.core.slo import Slo
from pdray.core.snapshot import FleetView, Role, WorkerView
from pdray.core.step_time import StepTime
from pdray.policy.forecast import (
    UNMEASURED,
    DecodeForecast,
    PrefillForecast,
    fits_in_a_step,
    forecast_decode,
    forecast_prefill,
    step_time_of,
)

from .base import (
    MAX_DECODE_CANDIDATES,
    Candidate,
    PlacementChoice,
    able_to_decode,
    able_to_prefill,
)

_NUM_LEAST_LOADED = 4
_NUM_LONGEST_CACHED = 2


class Cost:
    """The last word on what is foretold has the worker: a wrong guess costs time only."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        best = min(self._candidates(view, ask), key=self._rank, default=None)
        return None if best is None else best.choice

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        return tuple(sorted(self._candidates(view, ask), key=self._rank))

    def _rank(self, candidate: Candidate) -> tuple[bool, float]:
        is_late = candidate.ttft_s is not None and candidate.ttft_s > self._slo.ttft_s
        is_slow = candidate.itl_s is not None and candidate.itl_s > self._slo.itl_s
        return is_late or is_slow, candidate.cost

    def _candidates(self, view: FleetView, ask: PlacementAsk) -> list[Candidate]:
        cached = _cached(view, ask)
        prefills = able_to_prefill(_shortlist(view, Role.PREFILL, cached), ask)
        decodes = able_to_decode(_shortlist(view, Role.DECODE, cached), ask)
        candidates = _Sums(view, ask, self._slo, cached, prefills, decodes).candidates()
        if candidates:
            return candidates
        # Those few may be too small, unlike, or unable to reach each other.
        prefills = able_to_prefill(view.ready(Role.PREFILL), ask)
        decodes = able_to_decode(view.ready(Role.DECODE), ask)
        return _Sums(view, ask, self._slo, cached, prefills, decodes).candidates()


class _Sums:
    """Everything that is foretold for one request: of each worker once, and of a handoff once for
    each kind of prefill worker."""

    def __init__(
        self,
        view: FleetView,
        ask: PlacementAsk,
        slo: Slo,
        cached: Mapping[WorkerId, int],
        prefills: Sequence[WorkerView],
        decodes: Sequence[WorkerView],
    ) -> None:
        self._view = view
        self._ask = ask
        self._slo = slo
        self._cached = cached
        self._prefills = prefills
        self._decodes = decodes
        self._stand_in = _first_measured(prefills)
        self._forecasts: dict[WorkerId, DecodeForecast] = {}
        self._ranked: dict[tuple[str, int], list[tuple[float, float, WorkerView]]] = {}

    def candidates(self) -> list[Candidate]:
        match self._view.phases:
            case Role.PREFILL:
                return [self._candidate(prefill, (), None) for prefill in self._prefills]
            case Role.DECODE:
                ranking = self._ranking(None)
                return [self._candidate(None, ranking, None)] if ranking else []
        if self._view.mode is Mode.SOFT:
            return self._alone(Together.ONE_POOL)
        apart = [
            self._candidate(prefill, ranking, None)
            for prefill in self._prefills
            if (ranking := self._ranking(prefill))
        ]
        if self._view.mode is Mode.AUTO:
            return apart + self._alone(Together.CHEAPER if apart else Together.ALONE)
        if not apart:
            return self._alone(Together.ALONE)
        short = [worker for worker in self._decodes if self._is_short(worker)]
        return apart + [self._both(worker, Together.SHORT) for worker in short]

    def _alone(self, together: Together) -> list[Candidate]:
        return [
            self._both(worker, together)
            for worker in self._decodes
            if Role.PREFILL in worker.info.role
        ]

    def _both(self, worker: WorkerView, together: Together) -> Candidate:
        return self._candidate(worker, [(0.0, worker)], together)

    def _candidate(
        self,
        prefill: WorkerView | None,
        ranking: Sequence[tuple[float, WorkerView]],
        together: Together | None,
    ) -> Candidate:
        """``ranking`` has decode workers, best first, with the seconds of the handoff to each."""
        forecast = None if prefill is None else self._prefill(prefill)
        decode = self._decode(ranking[0][1]) if ranking else None
        handoff_s = ranking[0][0] if ranking else 0.0
        return Candidate(
            prefill_id=None if prefill is None else prefill.info.worker_id,
            decode_ids=tuple(worker.info.worker_id for _, worker in ranking),
            together=together,
            queue_s=None if forecast is None else forecast.queue_s,
            ttft_s=None if forecast is None else forecast.ttft_s,
            handoff_s=handoff_s,
            itl_s=None if decode is None else decode.itl_s,
            cost=(0.0 if forecast is None else forecast.cost_s)
            + handoff_s
            + (0.0 if decode is None else decode.cost_s),
        )

    def _ranking(self, prefill: WorkerView | None) -> list[tuple[float, WorkerView]]:
        """The decode workers that can take over from this one, best first, with the handoff's
        seconds."""
        ranking: list[tuple[float, WorkerView]] = []
        for _, handoff_s, decode in self._ranked_for(prefill):
            if prefill is None or self._can_pair(prefill, decode):
                ranking.append((handoff_s, decode))
                if len(ranking) == MAX_DECODE_CANDIDATES:
                    break
        return ranking

    def _can_pair(self, prefill: WorkerView, decode: WorkerView) -> bool:
        one, other = prefill.info, decode.info
        is_other = one.worker_id != other.worker_id and one.layout_digest == other.layout_digest
        return is_other and self._view.can_pair(one.worker_id, other.worker_id)

    def _ranked_for(self, prefill: WorkerView | None) -> list[tuple[float, float, WorkerView]]:
        """All decode workers: their cost with the handoff, the handoff, and who it is."""
        key = ("", 0)
        if prefill is not None:
            key = (prefill.info.node_group, prefill.info.max_tokens_per_step)
        ranked = self._ranked.get(key)
        if ranked is None:
            ranked = []
            for decode in self._decodes:
                handoff_s = 0.0 if prefill is None else self._handoff_s(prefill, decode)
                ranked.append((self._decode(decode).cost_s + handoff_s, handoff_s, decode))
            ranked.sort(key=lambda each: each[0])
            self._ranked[key] = ranked
        return ranked

    def _handoff_s(self, prefill: WorkerView, decode: WorkerView) -> float:
        """From the prompt's end to the step that decodes on: what could not be read before, and
        half of a step that is under way."""
        num_tokens = self._ask.num_prompt_tokens - self._num_cached(decode)
        num_last_tokens = min(num_tokens, prefill.info.max_tokens_per_step)
        transfer_s = self._view.transfer_s(
            prefill.info.worker_id, decode.info.worker_id, decode.info.kv_bytes(num_last_tokens)
        )
        return (transfer_s or 0.0) + self._decode(decode).itl_s / 2

    def _is_short(self, worker: WorkerView) -> bool:
        """What is to be computed fits in one step of a decode worker, as far as is known."""
        return self._stand_in is not UNMEASURED and fits_in_a_step(
            worker,
            self._ask.num_prompt_tokens,
            self._num_cached(worker),
            self._step_time(worker),
            self._slo.itl_s,
        )

    def _prefill(self, worker: WorkerView) -> PrefillForecast:
        return forecast_prefill(
            worker,
            self._ask,
            self._num_cached(worker),
            self._step_time(worker),
            self._slo.itl_s,
        )

    def _decode(self, worker: WorkerView) -> DecodeForecast:
        worker_id = worker.info.worker_id
        known = self._forecasts.get(worker_id)
        if known is None:
            load = self._view.prompt_load(worker_id)
            known = forecast_decode(worker, self._ask, self._step_time(worker), load)
            self._forecasts[worker_id] = known
        return known

    def _num_cached(self, worker: WorkerView) -> int:
        """At least one token is computed, whatever is cached."""
        num_tokens = self._cached.get(worker.info.worker_id, 0)
        return min(num_tokens, self._ask.num_prompt_tokens - 1)

    def _step_time(self, worker: WorkerView) -> StepTime:
        return step_time_of(worker, self._stand_in)


def _cached(view: FleetView, ask: PlacementAsk) -> Mapping[WorkerId, int]:
    """A session's KV may be in a tier that no prefix cache tells of: where it is not known how much
    of a next turn was there before, half of it is taken to be."""
    cached = view.cached_tokens(ask)
    worker_id = view.session_worker(ask)
    if worker_id is None or worker_id in cached:
        return cached
    return {**cached, worker_id: ask.num_prompt_tokens // 2}


def _shortlist(view: FleetView, role: Role, cached: Mapping[WorkerId, int]) -> list[WorkerView]:
    """The least loaded, and of those that have some of the prompt the ones that have the most."""
    workers = {worker.info.worker_id: worker for worker in view.shortlist(role, _NUM_LEAST_LOADED)}
    longest = sorted(cached, key=cached.__getitem__, reverse=True)[:_NUM_LONGEST_CACHED]
    for worker_id in (*longest, *(view.spared() if role is Role.DECODE else ())):
        worker = view.get(worker_id)
        if worker is not None and worker.is_ready and role in worker.info.role:
            workers[worker_id] = worker
    return list(workers.values())


def _first_measured(workers: Sequence[WorkerView]) -> StepTime:
    """Of one that has computed prompts: the first guess for those that have not."""
    for worker in workers:
        step_time = worker.step_time
        if step_time is not None and step_time.prefill_token_s > 0.0:
            return step_time_of(worker)
    return UNMEASURED
