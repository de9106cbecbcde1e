"""The controller's answer to "where does this request run?"."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from pdray.core.request import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Where a worker's link listens, and the key that opens it (never printed)."""

    worker_id: WorkerId
    host: str
    port: int
    link_key: bytes = field(repr=False)


class Together(enum.StrEnum):
    """Why one worker computes a request's prompt and decodes it: every worker does both in mode
    soft; so little is to compute that moving its KV would cost more than it saves; it is what
    costs least, in mode auto; no other worker can take over from it."""

    ONE_POOL = "one_pool"
    SHORT = "short"
    CHEAPER = "cheaper"
    ALONE = "alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementAsk:
    """A request as the controller sees it: lengths, never tokens. ``prefix_names`` has a name for
    every 16 tokens of the prompt, of all tokens up to there, one behind the other as in a
    PrefixReport: equal ones mean equal prefixes, but for a chance that costs time only. Of those
    that wait, the lowest ``priority`` goes first."""

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    prefix_names: bytes = b""
    session_id: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPrefix:
    """A worker has the KV of ``num_tokens`` tokens, ``name``d as in a PlacementAsk, in its
    prefix cache until it needs the room."""

    name: bytes
    num_tokens: int
    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSource:
    """Another worker that should have the KV of a prompt's first ``num_tokens``: a guess."""

    address: WorkerAddress
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A prefill worker, and decode workers in order of preference (bound late: the first
    that can reserve blocks when the prompt is about to run gets the request). Of an application
    that has one of the phases alone, the other is None or empty. From ``prefix_source`` the prefill
    worker may pull what it would have to compute. Where one worker does both phases, ``together``
    says why."""

    request_id: str
    prefill: WorkerAddress | None
    decode_candidates: tuple[WorkerAddress, ...]
    prefix_source: PrefixSource | None = None
    together: Together | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """Not yet: the answer comes through the controller's ``wait`` call."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The controller will not place this request. ``retry_after_s`` is None where trying
    again cannot help."""

    request_id: str
    reason: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveAsk:
    """A request that decodes on a worker which has to let it go, and may grow to
    ``max_total_tokens``. Those that ``refused`` it are not asked again."""

    request_id: str
    source_id: WorkerId
    max_total_tokens: int
    refused: tuple[WorkerId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLimits:
    """The longest sequence (prompt and output tokens) that some pair of live workers takes: by
    the model's length, and by the KV memory of the decode worker (of the prefill worker where
    the application has no other). ``model_digest`` is part of its prefixes' names."""

    max_model_len: int
    max_sequence_tokens: int
    model_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A request placed and not finished, as its frontend tells it to a remade controller."""

    ask: PlacementAsk
    prefill_id: WorkerId | None
    decode_id: WorkerId | None
