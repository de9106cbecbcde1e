"""When this worker began with each sequence: told with its first token from here."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from pdray.core.clock import Clock
from pdray.core.request import PhaseAges
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sequence import Sequence
from pdray.metrics.prometheus import WorkerMetrics


@dataclass(slots=True)
class _Times:
    """``prefilled_at`` and ``ready_at`` are those of a sequence that was pulled."""

    began_at: float | None = None
    prefilled_at: float | None = None
    ready_at: float | None = None


class PhaseTimes:
    """Forgets a sequence with its first token, or when nobody else has it any more: however it
    may have ended."""

    def __init__(self, metrics: WorkerMetrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._times: WeakKeyDictionary[Sequence, _Times] = WeakKeyDictionary()

    def has_arrived(self, sequence: Sequence, *, prefilled_at: float) -> None:
        """It was pulled, and joins the batch; its prefill was done at ``prefilled_at``."""
        self._times[sequence] = _Times(prefilled_at=prefilled_at, ready_at=self._clock.now())

    def on_step(self, output: SequenceOutput, started_at: float) -> PhaseAges | None:
        """To be told with the step's token, where that is the first one from here."""
        sequence = output.sequence
        times = self._times.get(sequence)
        if times is None:
            if output.index > len(sequence.request.output_token_ids):
                return None  # a later token, or a decode that has moved here
            times = self._times[sequence] = _Times()
        if times.began_at is None:
            times.began_at = started_at
            if times.prefilled_at is not None:
                self._metrics.handoff_finished(started_at - times.prefilled_at)
        if not output.token_ids:
            return None
        del self._times[sequence]
        now = self._clock.now()
        return PhaseAges(
            began_s=now - times.began_at,
            ready_s=None if times.ready_at is None else now - times.ready_at,
        )
