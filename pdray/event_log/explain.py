"""Why a request was placed where it was: its moment is replayed, and the policy asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pdray.control.journal import Told
from pdray.core.errors import EventLogError
from pdray.core.placement import Placement, PlacementAsk, Queued, Refusal
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView, Role
from pdray.core.step_time import StepTime
from pdray.policy.placement.base import Candidate, PlacementChoice, PlacementPolicy

from .replay import tell
from .segments import read_segment, segments


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInputs:
    """What the policy could read of one worker."""

    worker_id: WorkerId
    role: Role
    prefill_backlog_tokens: int
    num_decoding: int
    kv_utilization: float
    num_cached_tokens: int
    step_time: StepTime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """``asked_at`` and ``answered_at`` are on the controller's clock; the first is None where the
    request came before the log's oldest part. ``candidates``: the best first; empty for what no
    policy was asked for, or had no choice."""

    ask: PlacementAsk | None
    asked_at: float | None
    answered_at: float
    answer: Placement | Refusal
    policy: str
    candidates: tuple[Candidate, ...]
    workers: tuple[WorkerInputs, ...]


def explain(folder: Path, request_id: str) -> list[Explanation]:
    """Every answer that was given to this request, in order; of all choices where ``request_id``
    is a response's. Raises EventLogError where the log does not have it, or cannot be read."""
    found = [
        each
        for path in segments(folder)
        if _has(path, request_id)
        for each in _explain_in(path, request_id)
    ]
    if not found:
        raise EventLogError(
            f"no request {request_id!r} in the event log in {folder}: the oldest part of a log is "
            "given up for the newest"
        )
    return found


def _has(path: Path, request_id: str) -> bool:
    words = request_id.encode()
    with path.open("rb") as file:
        next(file, None)
        return any(words in line for line in file)


def _explain_in(path: Path, request_id: str) -> Iterator[Explanation]:
    control, entries = read_segment(path)
    watcher = _Watcher(request_id)
    control.watch(watcher.around)
    for _, told in tell(control, entries):
        yield from _answers(watcher, told, request_id)


def _answers(watcher: _Watcher, told: Told, request_id: str) -> Iterator[Explanation]:
    now = told.arguments["now"]
    assert isinstance(now, float)
    is_placing = told.event == "place"
    asks = told.arguments["asks"] if is_placing else ()
    assert isinstance(asks, list | tuple)
    for ask in asks:
        if _is_of(ask.request_id, request_id):
            watcher.asked.setdefault(ask.request_id, (ask, now))
    answers = told.answer if is_placing else []
    assert isinstance(answers, list)
    for answer in [*told.decisions, *answers]:
        if not isinstance(answer, Queued) and _is_of(answer.request_id, request_id):
            yield watcher.explanation(answer, now)


def _is_of(request_id: str, wanted: str) -> bool:
    return request_id == wanted or request_id.startswith(f"{wanted}-")


class _Watcher:
    """Sees what a policy is asked for the wanted requests."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._policy: PlacementPolicy | None = None
        self.asked: dict[str, tuple[PlacementAsk, float]] = {}
        self._seen: dict[str, tuple[tuple[Candidate, ...], tuple[WorkerInputs, ...]]] = {}

    def around(self, policy: PlacementPolicy) -> PlacementPolicy:
        self._policy = policy
        return self

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        assert self._policy is not None
        if _is_of(ask.request_id, self._wanted):
            candidates = tuple(self._policy.explain(view, ask))
            self._seen[ask.request_id] = candidates, _inputs(view, ask, candidates)
        return self._policy.place(view, ask)

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        assert self._policy is not None
        return tuple(self._policy.explain(view, ask))

    def explanation(self, answer: Placement | Refusal, now: float) -> Explanation:
        ask, asked_at = self.asked.get(answer.request_id, (None, None))
        candidates, workers = self._seen.get(answer.request_id, ((), ()))
        return Explanation(
            ask=ask,
            asked_at=asked_at,
            answered_at=now,
            answer=answer,
            policy=type(self._policy).__name__,
            candidates=candidates,
            workers=workers,
        )


def _inputs(
    view: FleetView, ask: PlacementAsk, candidates: tuple[Candidate, ...]
) -> tuple[WorkerInputs, ...]:
    ids = [each for one in candidates for each in (one.prefill_id, *one.decode_ids)]
    found = [view.get(each) for each in dict.fromkeys(ids) if each is not None]
    return tuple(
        WorkerInputs(
            worker_id=worker.info.worker_id,
            role=worker.info.role,
            prefill_backlog_tokens=worker.prefill_backlog_tokens,
            num_decoding=worker.num_decoding,
            kv_utilization=worker.kv_utilization,
            num_cached_tokens=view.cached_tokens_at(ask, worker.info.worker_id),
            step_time=worker.step_time,
        )
        for worker in found
        if worker is not None
    )
