"""A computed prompt whose blocks wait for a reader that nobody knows yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdray.core.errors import HandleProblem, HandleRefusedError
from pdray.core.request import TokenChunk, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseKey:
    """Names a parked prompt's lease to the worker that has it, and proves the right to claim it."""

    lease_id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedLease:
    """Blocks of ``owner_id`` that whoever has the key may claim, once.

    The key of the owner's link is not in it: those who may dial derive it (``ClusterSecret``).
    """

    key: LeaseKey
    secret_id: str
    """Of the cluster secret that its link's key is made of."""
    owner_id: WorkerId
    owner_host: str
    owner_port: int
    layout_digest: str


_REASONS = {
    HandleProblem.FORGED: "is not the one that its worker gave",
    HandleProblem.FOREIGN: "is another tenant's",
    HandleProblem.EXPIRED: "has expired: its KV is not kept any more",
    HandleProblem.USED_UP: "is used up: its KV has been decoded, is being decoded, or was released",
}


def lease_refused(problem: HandleProblem) -> HandleRefusedError:
    """What its owner has against a lease, for whoever came with its handle."""
    return HandleRefusedError(f"kv_handle: {_REASONS[problem]}", problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedPrompt:
    """What a prefill worker has made of a request: its first token and, unless that ended it, the
    lease on its blocks. ``lease_s`` is what the lease still had when this was said."""

    first: TokenChunk
    lease: ParkedLease | None
    lease_s: float
