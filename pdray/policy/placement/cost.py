"""The pair of workers, or the one, that costs least: its own request and all that run already.

A request's cost is the time it waits for its first token, for the handoff and for its other
tokens, and what it takes from everybody else meanwhile: prompts delay those that decode on the
same worker, a fuller batch makes every step longer. Choices that keep the SLO go before others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

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
        sums, options = self._options(view, ask)
        best = min(options, key=_rank, default=None)
        if best is None:
            return None
        prefill, forecast = best.prefill, best.prefill_forecast
        return PlacementChoice(
            prefill_id=None if prefill is None else prefill.info.worker_id,
            decode_ids=sums.decode_ids(best),
            together=best.together,
            queue_s=None if forecast is None else forecast.queue_s,
        )

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        sums, options = self._options(view, ask)
        return tuple(sums.candidate(option) for option in sorted(options, key=_rank))

    def _options(self, view: FleetView, ask: PlacementAsk) -> tuple[_Sums, list[_Option]]:
        cached = _cached(view, ask)
        longest = sorted(cached, key=cached.__getitem__, reverse=True)[:_NUM_LONGEST_CACHED]
        prefills = _shortlist(view, Role.PREFILL, longest)
        decodes = _shortlist(view, Role.DECODE, (*longest, *view.spared()))
        sums = _Sums(view, ask, self._slo, cached, prefills, decodes)
        options = sums.options()
        if not options:
            # Those few may be too small, unlike, or unable to reach each other.
            every = view.ready(Role.PREFILL), view.ready(Role.DECODE)
            sums = _Sums(view, ask, self._slo, cached, *every)
            options = sums.options()
        return sums, options


@dataclass(slots=True)
class _Decode:
    """A worker to decode on; ``cost_s`` is with the handoff."""

    cost_s: float
    handoff_s: float
    worker: WorkerView
    step_time: StepTime
    num_cached: int
    forecast: DecodeForecast

    def after(self, handoff_s: float) -> _Decode:
        cost_s = self.cost_s + handoff_s
        return _Decode(
            cost_s, handoff_s, self.worker, self.step_time, self.num_cached, self.forecast
        )


@dataclass(slots=True)
class _Option:
    """A prefill worker and the best of the decode workers that can take over from it, or one for
    both. ``rank``: less is better."""

    rank: tuple[bool, float]
    prefill: WorkerView | None
    prefill_forecast: PrefillForecast | None
    decode: _Decode | None
    together: Together | None


_rank = attrgetter("rank")
_cost_s = attrgetter("cost_s")


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
        self._prefills = able_to_prefill(prefills, ask)
        self._stand_in = _first_measured(self._prefills)
        self._decodes = [self._decode(worker) for worker in able_to_decode(decodes, ask)]
        self._after: dict[tuple[str, int], list[_Decode]] = {}

    def options(self) -> list[_Option]:
        match self._view.phases:
            case Role.PREFILL:
                return [self._option(prefill, None) for prefill in self._prefills]
            case Role.DECODE:
                best = min(self._decodes, key=_cost_s, default=None)
                return [] if best is None else [self._option(None, best)]
        if self._view.mode is Mode.SOFT:
            return self._alone(Together.ONE_POOL)
        apart = self._apart()
        if self._view.mode is Mode.AUTO:
            return apart + self._alone(Together.CHEAPER if apart else Together.ALONE)
        if not apart:
            return self._alone(Together.ALONE)
        return apart + self._short()

    def candidate(self, option: _Option) -> Candidate:
        prefill, forecast, decode = option.prefill, option.prefill_forecast, option.decode
        return Candidate(
            prefill_id=None if prefill is None else prefill.info.worker_id,
            decode_ids=self.decode_ids(option),
            together=option.together,
            queue_s=None if forecast is None else forecast.queue_s,
            ttft_s=None if forecast is None else forecast.ttft_s,
            handoff_s=0.0 if decode is None else decode.handoff_s,
            itl_s=None if decode is None else decode.forecast.itl_s,
            cost=option.rank[1],
        )

    def decode_ids(self, option: _Option) -> tuple[WorkerId, ...]:
        """Its own decode worker, and those that take over where that one cannot."""
        prefill, decode = option.prefill, option.decode
        if decode is None:
            return ()
        if option.together is not None:
            return (decode.worker.info.worker_id,)
        if prefill is None:
            able = sorted(self._decodes, key=_cost_s)
        else:
            able = [each for each in self._decodes_after(prefill) if self._can_pair(prefill, each)]
        return tuple([each.worker.info.worker_id for each in able[:MAX_DECODE_CANDIDATES]])

    def _apart(self) -> list[_Option]:
        options = []
        for prefill in self._prefills:
            for decode in self._decodes_after(prefill):
                if self._can_pair(prefill, decode):
                    options.append(self._option(prefill, decode))
                    break
        return options

    def _alone(self, together: Together) -> list[_Option]:
        return [
            self._option(decode.worker, decode, together)
            for decode in self._decodes
            if Role.PREFILL in decode.worker.info.role
        ]

    def _short(self) -> list[_Option]:
        """On decode workers that can compute the prompt in one of their steps, as far as is
        known."""
        if self._stand_in is UNMEASURED:
            return []
        num_tokens, itl_s = self._ask.num_prompt_tokens, self._slo.itl_s
        return [
            self._option(each.worker, each, Together.SHORT)
            for each in self._decodes
            if fits_in_a_step(each.forecast, num_tokens, each.num_cached, each.step_time, itl_s)
        ]

    def _option(
        self, prefill: WorkerView | None, decode: _Decode | None, together: Together | None = None
    ) -> _Option:
        misses_slo, cost_s, forecast = False, 0.0, None
        if decode is not None:
            misses_slo = decode.forecast.itl_s > self._slo.itl_s
            cost_s = decode.cost_s
        if prefill is not None:
            num_cached, step_time = self._num_cached(prefill), step_time_of(prefill, self._stand_in)
            forecast = forecast_prefill(prefill, self._ask, num_cached, step_time, self._slo.itl_s)
            misses_slo = misses_slo or forecast.ttft_s > self._slo.ttft_s
            cost_s += forecast.cost_s
        return _Option((misses_slo, cost_s), prefill, forecast, decode, together)

    def _can_pair(self, prefill: WorkerView, decode: _Decode) -> bool:
        one, other = prefill.info, decode.worker.info
        is_other = one.worker_id != other.worker_id and one.layout_digest == other.layout_digest
        return is_other and self._view.can_pair(one.worker_id, other.worker_id)

    def _decodes_after(self, prefill: WorkerView) -> list[_Decode]:
        """All of them, the best first: the same for all prefill workers of one kind."""
        kind = (prefill.info.node_group, prefill.info.max_tokens_per_step)
        after = self._after.get(kind)
        if after is None:
            after = [each.after(self._handoff_s(prefill, each)) for each in self._decodes]
            after.sort(key=_cost_s)
            self._after[kind] = after
        return after

    def _handoff_s(self, prefill: WorkerView, decode: _Decode) -> float:
        """From the prompt's end to the step that decodes on: what could not be read before, and
        half of a step that is under way."""
        half_step_s = decode.forecast.itl_s / 2
        info = decode.worker.info
        link = self._view.link_cost(prefill.info.node_group, info.node_group)
        if link is None:
            return half_step_s
        num_tokens = self._ask.num_prompt_tokens - decode.num_cached
        num_last_tokens = min(num_tokens, prefill.info.max_tokens_per_step)
        return half_step_s + link.read_s(info.kv_bytes(num_last_tokens))

    def _decode(self, worker: WorkerView) -> _Decode:
        step_time = step_time_of(worker, self._stand_in)
        prompt_load = self._view.prompt_load(worker.info.worker_id)
        forecast = forecast_decode(worker, self._ask, step_time, prompt_load)
        num_cached = self._num_cached(worker)
        return _Decode(forecast.cost_s, 0.0, worker, step_time, num_cached, forecast)

    def _num_cached(self, worker: WorkerView) -> int:
        """At least one token is computed, whatever is cached."""
        if not self._cached:
            return 0
        num_tokens = self._cached.get(worker.info.worker_id, 0)
        return min(num_tokens, self._ask.num_prompt_tokens - 1)


def _cached(view: FleetView, ask: PlacementAsk) -> Mapping[WorkerId, int]:
    """A session's KV may be in a tier that no prefix cache tells of: where it is not known how much
    of a next turn was there before, half of it is taken to be."""
    cached = view.cached_tokens(ask)
    worker_id = view.session_worker(ask)
    if worker_id is None or worker_id in cached:
        return cached
    return {**cached, worker_id: ask.num_prompt_tokens // 2}


def _shortlist(view: FleetView, role: Role, others: Sequence[WorkerId]) -> list[WorkerView]:
    """The least loaded, and those of ``others`` that take such work."""
    workers = list(view.shortlist(role, _NUM_LEAST_LOADED))
    for worker_id in others:
        worker = view.get(worker_id)
        if worker is None or worker in workers:
            continue
        if worker.is_ready and role in worker.info.role:
            workers.append(worker)
    return workers


def _first_measured(workers: Sequence[WorkerView]) -> StepTime:
    """Of one that has computed prompts: the first guess for those that have not."""
    for worker in workers:
        step_time = worker.step_time
        if step_time is not None and step_time.prefill_token_s > 0.0:
            return step_time_of(worker)
    return UNMEASURED
