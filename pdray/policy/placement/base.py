"""The interface of placement policies, and the pairs of workers that they choose from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pdray.core.mode import Mode
from pdray.core.placement import PlacementAsk, Together
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView, Role, WorkerView

MAX_DECODE_CANDIDATES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementChoice:
    """One prefill worker, and decode workers, best first; None or empty for a phase that is none
    of ``view.phases``. Where one worker is to do both phases, ``together`` says why.
    ``queue_s`` is how long its prompt will wait for those before it, where the policy can tell."""

    prefill_id: WorkerId | None
    decode_ids: tuple[WorkerId, ...]
    together: Together | None = None
    queue_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One that could be chosen, and what a policy foretells of it, in seconds; None where it does
    not look at that. The less it costs the better, whatever that means to the policy."""

    prefill_id: WorkerId | None
    decode_ids: tuple[WorkerId, ...]
    together: Together | None
    cost: float
    queue_s: float | None = None
    ttft_s: float | None = None
    handoff_s: float | None = None
    itl_s: float | None = None

    @property
    def choice(self) -> PlacementChoice:
        return PlacementChoice(
            prefill_id=self.prefill_id,
            decode_ids=self.decode_ids,
            together=self.together,
            queue_s=self.queue_s,
        )


class PlacementPolicy(Protocol):
    """Chooses workers. Reads the view, changes nothing in it, keeps no reference to it."""

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        """A choice out of ``pairings(view, ask)``, with at most ``MAX_DECODE_CANDIDATES``
        decode workers; None where there is no pair now."""

    def explain(self, view: FleetView, ask: PlacementAsk) -> Sequence[Candidate]:
        """What ``place`` would choose first, and the runners-up. Changes nothing: ``place`` makes
        the same choice after it as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A prefill worker and every decode worker that can take over from it: one at least, but for
    a phase that nobody is placed for. ``together`` says why it is the same worker, where it is."""

    prefill: WorkerView | None
    decodes: Sequence[WorkerView]
    together: Together | None = None

    @property
    def prefill_id(self) -> WorkerId | None:
        return None if self.prefill is None else self.prefill.info.worker_id


def pairings(view: FleetView, ask: PlacementAsk) -> list[Pairing]:
    """All pairs of ready workers with one layout that can reach each other and hold this request.

    In mode soft each worker is paired with itself; in others only where there is no other pair.
    """
    prefills = able_to_prefill(view.ready(Role.PREFILL), ask)
    return pair_up(view, prefills, able_to_decode(view.ready(Role.DECODE), ask))


def pair_up(
    view: FleetView, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]
) -> list[Pairing]:
    """Those of ``pairings`` that these workers make."""
    if view.phases is Role.PREFILL:
        return [Pairing(prefill=prefill, decodes=()) for prefill in prefills]
    if view.phases is Role.DECODE:
        return [Pairing(prefill=None, decodes=decodes)] if decodes else []
    if view.mode is Mode.SOFT:
        return singles(decodes, Together.ONE_POOL)
    return _apart(view, prefills, decodes) or singles(decodes, Together.ALONE)


def able_to_prefill(workers: Iterable[WorkerView], ask: PlacementAsk) -> list[WorkerView]:
    """Those that can hold the prompt."""
    num_tokens = ask.num_prompt_tokens
    return [worker for worker in workers if worker.info.max_sequence_tokens >= num_tokens]


def able_to_decode(workers: Iterable[WorkerView], ask: PlacementAsk) -> list[WorkerView]:
    """Those that can hold the prompt and its output."""
    num_tokens = ask.num_prompt_tokens + ask.max_tokens
    return [worker for worker in workers if worker.info.max_sequence_tokens >= num_tokens]


def _apart(
    view: FleetView, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]
) -> list[Pairing]:
    by_layout: dict[str, list[WorkerView]] = {}
    for decode in decodes:
        by_layout.setdefault(decode.info.layout_digest, []).append(decode)
    pairs: list[Pairing] = []
    for prefill in prefills:
        prefill_id = prefill.info.worker_id
        others = [
            decode
            for decode in by_layout.get(prefill.info.layout_digest, [])
            if decode.info.worker_id != prefill_id
            and view.can_pair(prefill_id, decode.info.worker_id)
        ]
        if others:
            pairs.append(Pairing(prefill=prefill, decodes=others))
    return pairs


def singles(decodes: Sequence[WorkerView], together: Together) -> list[Pairing]:
    """Those of decode workers that compute prompts too, each paired with itself."""
    return [
        Pairing(prefill=worker, decodes=[worker], together=together)
        for worker in decodes
        if Role.PREFILL in worker.info.role
    ]
