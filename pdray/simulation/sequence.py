"""A request on its way through the simulation, and its record on each worker that computes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.slo import Slo

from .kv_blocks import Holding


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request: all times in seconds from the start, None for what never was. Of
    its ``num_gaps`` between tokens, ``num_late_gaps`` were longer than the SLO's ITL."""

    arrived_at: float
    first_token_at: float | None
    finished_at: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_gaps: int
    num_late_gaps: int
    refusal: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def tpot_s(self) -> float | None:
        if self.finished_at is None or self.first_token_at is None or self.num_gaps == 0:
            return None
        return (self.finished_at - self.first_token_at) / self.num_gaps

    def meets(self, slo: Slo) -> bool:
        """As metrics.latency's RequestRecord has it."""
        if self.finished_at is None or self.ttft_s is None or self.ttft_s > slo.ttft_s:
            return False
        num_good = self.num_gaps - self.num_late_gaps
        return self.num_gaps == 0 or num_good / self.num_gaps >= slo.percentile


@dataclass(slots=True, eq=False, kw_only=True)
class SimulatedRequest:
    """``num_made`` output tokens have come, the last one at ``token_at``: both of when it joined
    the batch, for as long as it is there. ``decoded_on``: where its last token was made."""

    request_id: str
    arrived_at: float
    num_prompt_tokens: int
    num_output_tokens: int
    ask: PlacementAsk
    piece_ids: tuple[int, ...] = ()
    candidates: tuple[WorkerId, ...] = ()
    first_token_at: float | None = None
    token_at: float = 0.0
    num_made: int = 0
    num_late_gaps: int = 0
    decoded_on: WorkerId | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return self.num_prompt_tokens + self.num_made

    @property
    def num_final_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_left(self) -> int:
        return self.num_output_tokens - self.num_made

    @property
    def needs_handoff(self) -> bool:
        return self.ask.max_tokens > 1

    def outcome(self, finished_at: float | None, refusal: str | None = None) -> Outcome:
        return Outcome(
            arrived_at=self.arrived_at,
            first_token_at=self.first_token_at,
            finished_at=finished_at,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_made,
            num_gaps=max(self.num_made - 1, 0),
            num_late_gaps=self.num_late_gaps,
            refusal=refusal,
        )


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request's record on one worker. One that ``is_lent`` is a prompt computed for another, and
    keeps its blocks until that has read them. ``end_tokens``: what has to be computed before the
    next token comes."""

    request: SimulatedRequest
    is_lent: bool = False
    age: int = 0
    num_computed: int = 0
    end_tokens: int = 0
    capacity_tokens: int = 0
    """That its growing blocks are good for, when it joins the batch."""
    holding: Holding = field(default_factory=Holding)
    num_refusals: int = 0
    is_refused: bool = False
    stay: int | None = None
    """In the decode batch: which of all stays; None out of it."""
    joined_step: int = 0
    late_steps_before: int = 0

    @property
    def num_uncomputed(self) -> int:
        return self.end_tokens - self.num_computed
