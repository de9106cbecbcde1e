"""What two workers agree on before KV moves from one to the other: of a prompt that is about to
run, or of a decode that runs."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.request import Request, WorkerId

RESERVED_MARGIN_TOKENS = 128
"""Room to grow that a reservation holds beyond its prompt; preemption covers what is longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoff:
    """A worker's offer: reserve blocks for this request, and pull them from me.

    ``lease_s`` is a duration on each side's own clock. ``frontend_id`` names whom the decode
    worker sends its tokens to. ``made_token_ids`` are a migration's: what this attempt has made
    so far, but for the newest token, whose KV is not computed. None where a prompt is offered.
    """

    lease_id: str
    request: Request
    attempt: int
    frontend_id: str
    owner_id: WorkerId
    lease_s: float
    made_token_ids: tuple[int, ...] | None = None

    @property
    def is_migration(self) -> bool:
        return self.made_token_ids is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRun:
    """A stretch of one KV group's block table: logical blocks ``first_block``,
    ``first_block + 1``, ... live in ``block_ids``. Where the first is not whole, what it lacks
    lies before the group's window."""

    group_id: int
    first_block: int
    block_ids: tuple[int, ...]
    is_first_whole: bool = True

    @property
    def end_block(self) -> int:
        return self.first_block + len(self.block_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEpoch:
    """What its owner's memory has at ``slot`` for as long as a lease is not over."""

    slot: int
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """How far a lease's blocks may be read: cumulative, so a lost or doubled one does no harm.

    ``runs`` are all blocks published so far; of a decode, those that its next token needs.
    ``first_token_id`` is set once there is no more to come: with it, decode can go on. It follows
    what was offered; ``later_token_ids`` were made while a decode's blocks moved. What was read
    counts only where ``epoch``, looked at after it, was still the lease's; None where its owner
    has too many leases for that.
    """

    lease_id: str
    ready_tokens: int
    runs: tuple[BlockRun, ...]
    first_token_id: int | None
    epoch: LeaseEpoch | None = None
    later_token_ids: tuple[int, ...] = ()
