"""Every message on a link, and the wire version that both ends must share."""

from __future__ import annotations

import msgspec

from pdray.core.errors import HandleProblem
from pdray.core.handoff import Handoff, Watermark
from pdray.core.parked import LeaseKey
from pdray.core.placement import PrefixSource, WorkerAddress
from pdray.core.request import Request, TokenChunk, WorkerId

WIRE_VERSION = 13


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message each way. Workers add their pool, node group, layout and how their
    blocks are read; frontends have None there."""

    wire_version: int
    peer_id: str
    pool: str | None
    node_group: str | None
    # Equal where one's KV blocks can be made of the other's.
    layout_digest: str | None
    layout_text: str | None
    transfer_description: bytes | None


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a request, and where its decode may run, best first. ``prefix_source`` may
    have KV of its prompt.

    One that ``is_parked`` has no candidates: once computed, it waits to be claimed. With a
    ``claim`` it is computed already, and is that lease's.
    """

    request: Request
    attempt: int
    decode_candidates: tuple[WorkerAddress, ...]
    prefix_source: PrefixSource | None = None
    is_parked: bool = False
    claim: LeaseKey | None = None


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to prefill worker: run these."""

    submissions: tuple[Submission, ...]


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to any worker: end these attempts (and older ones), known or not yet known."""

    attempts: tuple[tuple[str, int], ...]


class Tokens(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Worker to frontend: what one step made, for all of this frontend's requests."""

    chunks: tuple[TokenChunk, ...]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Worker to frontend: this attempt ended badly, for ``reason``. ``problem`` is set where its
    claim is at fault, ``retry_after_s`` where there was no room for it. What ``comes_again`` would
    do so on every worker. One that ``is_given_back`` had not begun, on a worker that drains."""

    request_id: str
    attempt: int
    reason: str
    problem: HandleProblem | None = None
    retry_after_s: float | None = None
    comes_again: bool = False
    is_given_back: bool = False


class Draining(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Worker to every frontend that has a link: I go before long. Have others go on with what
    decodes here."""


class Parked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Prefill worker to frontend, before the first token: whoever has the key may claim the
    attempt's blocks. ``secret_id`` is of the secret that this worker's link key is made of."""

    request_id: str
    attempt: int
    key: LeaseKey
    secret_id: str
    lease_s: float


class RenewParked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to prefill worker: somebody will come for these blocks yet."""

    key: LeaseKey


class ReleaseParked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to prefill worker: nobody will come for these blocks."""

    key: LeaseKey


class ParkedAnswer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Prefill worker to frontend: the lease has so long from now on, or its ``problem``."""

    lease_id: str
    lease_s: float
    problem: HandleProblem | None


class GoesOn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Prefill worker to frontend: this worker decodes the attempt, and no other that was named
    before."""

    request_id: str
    attempt: int
    worker_id: WorkerId


class DecodeLost(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to prefill worker: I have lost this candidate, which has not begun to decode the
    attempt. Where nobody else was told of already, GoesOn, HandedOff or Failed comes back."""

    request_id: str
    attempt: int
    worker_id: WorkerId


class PrefillLost(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to decode worker: I have lost the prefill worker. Failed comes back where the
    attempt's blocks are not all there."""

    request_id: str
    attempt: int


class Migrate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Frontend to decode worker: have this other one go on with the attempt. Moved comes back,
    unless the attempt ends before. The frontend has a link to the target."""

    request_id: str
    attempt: int
    target: WorkerAddress


class Moved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Decode worker to frontend, after the last token that it made before: the target goes on with
    the attempt, or, for the ``failure``, this worker does. With ``may_run_there`` the target may
    have begun all the same: one of the two is to be cancelled."""

    request_id: str
    attempt: int
    target_id: WorkerId
    failure: str | None
    may_run_there: bool = False


class CaughtUp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reader to owner, of a decode: all that was published is here."""

    lease_id: str


class HandedOff(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Prefill worker to frontend: whoever was to decode the attempt has its blocks; here they are
    offered to nobody any more."""

    request_id: str
    attempt: int


class Meet(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Worker to worker, before any request: read a block of mine, and say how that went."""


class Met(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Worker to worker: I have read a block of yours, or why I could not."""

    failure: str | None


class Offer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Owner to decode worker: reserve blocks for this."""

    handoff: Handoff


class OfferReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Decode to prefill worker: reserved, or why not; ``is_final`` where asking this worker again
    cannot help."""

    lease_id: str
    refusal: str | None
    is_final: bool


class Publish(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Prefill to decode worker: these blocks may be read now."""

    watermark: Watermark


class Withdraw(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Prefill to decode worker: the request is over; acknowledge once no read is in flight."""

    lease_id: str


class Renew(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reader to owner: I need these leases for longer. ``asked_at``, of the reader's own clock,
    comes back with the answer."""

    lease_ids: tuple[str, ...]
    asked_at: float


class Renewed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Owner to reader: these last for another lease's time, counted from ``asked_at``. Those that
    are not among them do not."""

    lease_ids: tuple[str, ...]
    asked_at: float


class GiveUp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reader to owner: I shall not use these blocks, but a read of them is still in flight;
    Acknowledge comes when it is not."""

    lease_id: str
    reason: str


class Acknowledge(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Decode to prefill worker: no read of this lease is in flight or will be; it ends.
    ``failure`` is set where the blocks did not arrive."""

    lease_id: str
    failure: str | None


class Borrow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Worker to worker: lend me what your prefix cache has of the prefix that these name, one hash
    for every 16 tokens. Of use are whole blocks of ``block_size`` tokens. ``number`` comes back
    with the answer."""

    number: int
    prefix_hashes: tuple[bytes, ...]
    block_size: int


class Lent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to Borrow: what may be read, for ``lease_s`` from when it was asked for; None
    where there is nothing."""

    number: int
    lease_s: float
    watermark: Watermark | None


class AskFiles(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Starting worker to one that serves: lend me the files that you have loaded your model from,
    until this link ends."""


class LentFile(msgspec.Struct, frozen=True, kw_only=True):
    """A plain name, and whether it holds weights."""

    name: str
    num_bytes: int
    is_weights: bool


class LentFiles(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to AskFiles. The reader has ``num_slots`` blocks of the arena that
    ``transfer_description`` is of; a ``refusal`` comes alone."""

    refusal: str | None
    files: tuple[LentFile, ...] = ()
    num_slots: int = 0
    slot_bytes: int = 0
    transfer_description: bytes = b""


class AskChunk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reader to owner: put what the file has from ``offset`` on, as much as fits, into this slot,
    which I have done with."""

    file: int
    offset: int
    slot: int


class LentChunk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to AskChunk: it is there, or why not. ``checksum`` is its CRC-32."""

    slot: int
    checksum: int
    failure: str | None


Message = (
    Hello
    | Submit
    | Cancel
    | Tokens
    | Failed
    | Draining
    | Parked
    | RenewParked
    | ReleaseParked
    | ParkedAnswer
    | GoesOn
    | DecodeLost
    | PrefillLost
    | HandedOff
    | Migrate
    | Moved
    | CaughtUp
    | Meet
    | Met
    | Offer
    | OfferReply
    | Publish
    | Withdraw
    | Renew
    | Renewed
    | GiveUp
    | Acknowledge
    | Borrow
    | Lent
    | AskFiles
    | LentFiles
    | AskChunk
    | LentChunk
)
