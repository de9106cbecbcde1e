"""How long each phase of one request took, and on which worker."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pdray.core.request import WorkerId


class PhaseName(enum.StrEnum):
    """In this order, each from the end of the one before it.

    A request that one worker computes and decodes has neither TRANSFER nor DECODE_WAIT, one that
    ends with its first token has no DECODE. One that moves while it decodes has a DECODE for each
    worker. One whose worker is lost is QUEUED again, and so on: what of the lost attempt is unknown
    counts to the phase before it.
    """

    QUEUED = "queued"
    """From its arrival until it is placed."""
    PREFILL_WAIT = "prefill_wait"
    """Until its prompt's first chunk runs: on its way to the worker, and in the queue there."""
    PREFILL = "prefill"
    """Until its first token is here."""
    TRANSFER = "transfer"
    """Until its decode worker has all KV: what prefill has not hidden of that."""
    DECODE_WAIT = "decode_wait"
    """Until its first decode step."""
    DECODE = "decode"
    """Until its last token is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """``start_s`` counts from the request's arrival. QUEUED is on no worker."""

    name: PhaseName
    start_s: float
    duration_s: float
    worker_id: WorkerId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A request's phases, without a gap. ``arrived_at`` is on its frontend's clock, as all of it
    is."""

    arrived_at: float
    phases: tuple[Phase, ...]

    @property
    def total_s(self) -> float:
        return sum(phase.duration_s for phase in self.phases)
