"""A prefill worker's record of one prompt: how far it is, and who reads it."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from pdray.core.placement import PrefixSource, WorkerAddress
from pdray.core.request import WorkerId
from pdray.engine.sequence import Sequence
from pdray.link.messages import Submission
from pdray.worker.parked_table import Parked


class Phase(enum.StrEnum):
    """WAITING -> OFFERED -> RUNNING -> HANDING_OFF; OFFERED goes back when all refuse.

    A prompt that is decoded where it is computed is none of ours any more once it runs. One that
    loses its reader stays in its phase and looks for another.
    """

    WAITING = "waiting"
    OFFERED = "offered"
    RUNNING = "running"
    HANDING_OFF = "handing_off"


@dataclass(slots=True, eq=False)
class Prompt:
    """``lease_id`` is of the worker that reads it, ``reader_id``, while there is one. Those in
    ``lost``, with the reason, are not asked again. ``seek_until`` is when it
    gives up to look for another one."""

    number: int
    frontend_id: str
    submission: Submission
    sequence: Sequence
    phase: Phase = Phase.WAITING
    lease_id: str | None = None
    reader_id: WorkerId | None = None
    lost: dict[WorkerId, str] = field(default_factory=dict)
    ready_tokens: int = 0
    first_token_id: int | None = None
    seek_until: float = math.inf
    num_refusals: int = 0
    is_resting: bool = False
    prefix_source: PrefixSource | None = None
    """To be asked when its turn is near."""
    num_parked_blocks: int = 0
    """Room that it has taken where prompts are parked."""
    parked: Parked | None = None
    """What it was before it was claimed."""
    fetch_above_blocks: int | None = None
    """What tiers have of it may come once more blocks than these are available; None: not now."""
    is_fetching: bool = False
    is_cancelled: bool = False

    @property
    def request_id(self) -> str:
        return self.submission.request.request_id

    @property
    def attempt(self) -> int:
        return self.submission.attempt

    @property
    def owner(self) -> tuple[str, str, int]:
        """Its frontend, and what that calls it."""
        return self.frontend_id, self.request_id, self.attempt

    @property
    def num_tokens(self) -> int:
        """The prompt, and what earlier attempts have put behind it."""
        request = self.submission.request
        return len(request.prompt_token_ids) + len(request.output_token_ids)

    @property
    def num_uncached_tokens(self) -> int:
        """To be computed here, for one that is queued: all of them before it has its blocks, and
        with them what the prefix cache has of it."""
        return self.sequence.num_uncomputed_tokens

    @property
    def is_queued(self) -> bool:
        """Not in the engine yet."""
        return self.phase in (Phase.WAITING, Phase.OFFERED)

    @property
    def needs_handoff(self) -> bool:
        request = self.submission.request
        return request.sampling.max_tokens - len(request.output_token_ids) > 1

    @property
    def candidates(self) -> tuple[WorkerAddress, ...]:
        """Who may decode it, best first."""
        addresses = self.submission.decode_candidates
        return tuple(each for each in addresses if each.worker_id not in self.lost)
