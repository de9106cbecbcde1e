"""The interface of placement policies, and the pairs of workers that they choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView, Role, WorkerView

MAX_DECODE_CANDIDATES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementChoice:
    """One prefill worker, and decode workers, best first."""

    prefill_id: WorkerId
    decode_ids: tuple[WorkerId, ...]


class PlacementPolicy(Protocol):
    """Chooses workers. Reads the view, changes nothing in it, keeps no reference to it."""

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        """A choice out of ``pairings(view, ask)``, with at most ``MAX_DECODE_CANDIDATES``
        decode workers; None where there is no pair now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A prefill worker and every decode worker that can take over from it; never empty."""

    prefill: WorkerView
    decodes: Sequence[WorkerView]


def pairings(view: FleetView, ask: PlacementAsk) -> list[Pairing]:
    """All pairs of ready workers with one layout that can hold this request.

    A worker is paired with itself only where that is the only pair there is.
    """
    num_total_tokens = ask.num_prompt_tokens + ask.max_tokens
    decodes_by_layout: dict[str, list[WorkerView]] = {}
    for worker in view.ready(Role.DECODE):
        if worker.info.max_sequence_tokens >= num_total_tokens:
            decodes_by_layout.setdefault(worker.info.layout_digest, []).append(worker)

    apart: list[Pairing] = []
    alone: list[Pairing] = []
    for prefill in view.ready(Role.PREFILL):
        if prefill.info.max_sequence_tokens < ask.num_prompt_tokens:
            continue
        decodes = decodes_by_layout.get(prefill.info.layout_digest, [])
        others = [d for d in decodes if d.info.worker_id != prefill.info.worker_id]
        if others:
            apart.append(Pairing(prefill=prefill, decodes=others))
        elif decodes:
            alone.append(Pairing(prefill=prefill, decodes=decodes))
    return apart or alone
