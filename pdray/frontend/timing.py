"""When a request was placed and its tokens came, told to the metrics as they come."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.core.request import TokenChunk, WorkerId
from pdray.core.timeline import Timeline
from pdray.frontend.phase_record import PhaseRecord
from pdray.metrics.prometheus import FrontendMetrics, Outcome


@dataclass(slots=True)
class RequestTiming:
    """One request's clock: starts at its arrival, ends exactly once."""

    metrics: FrontendMetrics
    clock: Clock
    arrived_at: float
    phases: PhaseRecord
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_tokens: int = 0
    num_lost_attempts_tokens: int = 0

    @classmethod
    def start(cls, metrics: FrontendMetrics, clock: Clock, num_prompt_tokens: int) -> RequestTiming:
        metrics.request_started(num_prompt_tokens)
        now = clock.now()
        return cls(metrics, clock, now, PhaseRecord(now))

    def placed(self) -> None:
        self.phases.placed_at = self.clock.now()

    def lost(self) -> None:
        """Its workers are, and it waits to be placed again."""
        self.phases.lost(self.clock.now(), has_decoded=self._has_decoded)
        self.num_lost_attempts_tokens = self.num_tokens

    @property
    def _has_decoded(self) -> bool:
        return self.num_tokens - self.num_lost_attempts_tokens > 1

    def tokens_came(self, worker_id: str, chunk: TokenChunk) -> None:
        """They are here, readable or not."""
        self.phases.tokens_came(WorkerId(worker_id), chunk, self.clock.now())

    def tokens(self, n: int) -> None:
        """``n`` tokens became readable, together."""
        now = self.clock.now()
        if self.last_token_at is None:
            self.first_token_at = now
            self.metrics.observe_first_token(now - self.arrived_at, n)
        else:
            self.metrics.token_interval(now - self.last_token_at, n)
        self.last_token_at = now
        self.num_tokens += n

    def timeline(self) -> Timeline:
        """Of one that has all its tokens."""
        assert self.last_token_at is not None, "no token has come"
        return self.phases.timeline(self.last_token_at, has_decoded=self._has_decoded)

    def end(self, outcome: Outcome) -> None:
        if outcome not in (Outcome.STOP, Outcome.LENGTH) or self.last_token_at is None:
            self.metrics.request_ended(outcome)
            return
        assert self.first_token_at is not None
        tpot_s = None
        if self.num_tokens > 1:
            tpot_s = (self.last_token_at - self.first_token_at) / (self.num_tokens - 1)
        self.metrics.request_ended(
            outcome, e2e_s=self.last_token_at - self.arrived_at, tpot_s=tpot_s
        )
