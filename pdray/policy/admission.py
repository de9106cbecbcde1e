"""At the door: place a request now, let it wait, or send it away."""

from __future__ import annotations

import enum

from pdray.core.snapshot import FleetView

_MIN_RETRY_AFTER_S = 1.0
_MAX_RETRY_AFTER_S = 60.0


class Admission(enum.Enum):
    ADMIT = enum.auto()
    QUEUE = enum.auto()
    REJECT = enum.auto()


def max_in_flight(view: FleetView) -> int:
    """How many requests the ready workers may have at once: a full batch in every decode
    worker, and as many again in prefill, so that decode never waits for the next one."""
    return view.batch_room(view.phases)


def decide(
    *, is_next: bool, num_in_flight: int, max_in_flight: int, num_queued: int, max_queued: int
) -> Admission:
    """First come, first served among equally urgent ones: nobody passes a request that waits
    already, unless its turn ``is_next``."""
    if is_next and num_in_flight < max_in_flight:
        return Admission.ADMIT
    return Admission.QUEUE if num_queued < max_queued else Admission.REJECT


def retry_after_s(*, num_queued: int, finished_per_s: float) -> float:
    """When the queue of now will have been served, at the rate of late; 1 to 60 s."""
    if finished_per_s <= 0.0:
        return _MAX_RETRY_AFTER_S
    return clamp_retry_after(num_queued / finished_per_s)


def clamp_retry_after(seconds: float) -> float:
    """Neither so soon that nothing has changed, nor so late that nobody would wait."""
    return min(max(seconds, _MIN_RETRY_AFTER_S), _MAX_RETRY_AFTER_S)
