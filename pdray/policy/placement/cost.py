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
    Pairing,
    PlacementChoice,
    able_to_decode,
    able_to_prefill,
    pair_up,
    singles,
)

_NUM_LEAST_LOADED = 6
_NUM_LONGEST_CACHED = 3


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
        pairs = pair_up(view, prefills, decodes)
        if not pairs:  # those few may be too small, unlike, or unable to reach each other
            prefills = able_to_prefill(view.ready(Role.PREFILL), ask)
            decodes = able_to_decode(view.ready(Role.DECODE), ask)
            pairs = pair_up(view, prefills, decodes)
        sums = _Sums(view, ask, self._slo, cached, prefills)
        if view.phases is Role.MIXED and view.mode is Mode.AUTO:
            pairs += singles(decodes, Together.CHEAPER)
        candidates = [sums.candidate(pair) for pair in pairs]
        if view.phases is Role.MIXED and view.mode is Mode.POOLED:
            candidates += [
                sums.candidate(Pairing(prefill=worker, decodes=[worker], together=Together.SHORT))
                for worker in decodes
                if sums.is_short(worker)
            ]
        return candidates


class _Sums:
    """Everything that is foretold for one request: of each worker once."""

    def __init__(
        self,
        view: FleetView,
        ask: PlacementAsk,
        slo: Slo,
        cached: Mapping[WorkerId, int],
        prefills: Sequence[WorkerView],
    ) -> None:
        self._view = view
        self._ask = ask
        self._slo = slo
        self._cached = dict(cached)
        self._stand_in = _first_measured(prefills)
        self._prefills: dict[WorkerId, PrefillForecast] = {}
        self._decodes: dict[WorkerId, DecodeForecast] = {}

    def candidate(self, pair: Pairing) -> Candidate:
        decodes = self._ranked(pair)
        prefill = None if pair.prefill is None else self._prefill(pair.prefill)
        decode = self._decode(decodes[0]) if decodes else None
        handoff_s = self._handoff_s(pair, decodes[0]) if decodes else 0.0
        parts = (
            0.0 if prefill is None else prefill.cost_s,
            handoff_s,
            0.0 if decode is None else decode.cost_s,
        )
        return Candidate(
            prefill_id=pair.prefill_id,
            decode_ids=tuple(worker.info.worker_id for worker in decodes),
            together=pair.together,
            queue_s=None if prefill is None else prefill.queue_s,
            ttft_s=None if prefill is None else prefill.ttft_s,
            itl_s=None if decode is None else decode.itl_s,
            handoff_s=handoff_s,
            cost=sum(parts),
        )

    def is_short(self, worker: WorkerView) -> bool:
        """What is to be computed fits in one step of a decode worker, as far as is known."""
        return self._stand_in is not UNMEASURED and fits_in_a_step(
            worker,
            self._ask.num_prompt_tokens,
            self._num_cached(worker),
            self._step_time(worker),
            self._slo.itl_s,
        )

    def _ranked(self, pair: Pairing) -> list[WorkerView]:
        if len(pair.decodes) < 2:
            return list(pair.decodes)

        def cost_s(worker: WorkerView) -> float:
            return self._decode(worker).cost_s + self._handoff_s(pair, worker)

        return sorted(pair.decodes, key=cost_s)[:MAX_DECODE_CANDIDATES]

    def _handoff_s(self, pair: Pairing, decode: WorkerView) -> float:
        """From the prompt's end to the step that decodes on: what could not be read before, and
        half of a step that is under way."""
        if pair.prefill is None or pair.prefill.info.worker_id == decode.info.worker_id:
            return 0.0
        num_tokens = self._ask.num_prompt_tokens - self._num_cached(decode)
        num_last_tokens = min(num_tokens, pair.prefill.info.max_tokens_per_step)
        transfer_s = self._view.transfer_s(
            pair.prefill.info.worker_id,
            decode.info.worker_id,
            decode.info.kv_bytes(num_last_tokens),
        )
        return (transfer_s or 0.0) + self._decode(decode).itl_s / 2

    def _prefill(self, worker: WorkerView) -> PrefillForecast:
        worker_id = worker.info.worker_id
        known = self._prefills.get(worker_id)
        if known is None:
            known = self._prefills[worker_id] = forecast_prefill(
                worker,
                self._ask,
                self._num_cached(worker),
                self._step_time(worker),
                self._slo.itl_s,
            )
        return known

    def _decode(self, worker: WorkerView) -> DecodeForecast:
        worker_id = worker.info.worker_id
        known = self._decodes.get(worker_id)
        if known is None:
            known = forecast_decode(worker, self._ask, self._step_time(worker))
            self._decodes[worker_id] = known
        return known

    def _num_cached(self, worker: WorkerView) -> int:
        """At least one token is computed, whatever is cached."""
        worker_id = worker.info.worker_id
        num_tokens = self._cached.get(worker_id)
        if num_tokens is None:
            # Where nobody has any, neither has this one.
            num_tokens = self._view.cached_tokens_at(self._ask, worker_id) if self._cached else 0
            self._cached[worker_id] = num_tokens
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
    for worker_id in sorted(cached, key=cached.__getitem__, reverse=True)[:_NUM_LONGEST_CACHED]:
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
