"""A computed prompt whose blocks wait for a reader that nobody knows yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdray.core.request import TokenChunk, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedLease:
    """Blocks of ``owner_id`` that whoever knows the secret may claim, once.

    The key of the owner's link is not in it: those who may dial derive it (``ClusterSecret``).
    """

    lease_id: str
    secret: bytes = field(repr=False)
    owner_id: WorkerId
    owner_host: str
    owner_port: int
    layout_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedPrompt:
    """What a prefill worker has made of a request: its first token and, unless that ended it, the
    lease on its blocks. ``lease_s`` is what the lease still had when this was said."""

    first: TokenChunk
    lease: ParkedLease | None
    lease_s: float
