"""When a request's tokens came, told to the metrics as they come."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.metrics.prometheus import FrontendMetrics, Outcome


@dataclass(slots=True)
class RequestTiming:
    """One request's clock: starts at its arrival, ends exactly once."""

    metrics: FrontendMetrics
    clock: Clock
    arrived_at: float
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_tokens: int = 0

    @classmethod
    def start(cls, metrics: FrontendMetrics, clock: Clock, num_prompt_tokens: int) -> RequestTiming:
        metrics.request_started(num_prompt_tokens)
        return cls(metrics, clock, clock.now())

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
