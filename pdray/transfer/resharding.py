"""One rank's reads of peers whose layout may be another: in place where that can be, else through
staging and converted.

With the same layout on both sides, blocks are read as the arena's transport reads them.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.kvcache.convertible import convertible
from pdray.kvcache.staging import IsDone, Staging
from pdray.kvcache.storage import KVStorage
from pdray.transfer.base import ArenaTransport, BlockPart, KVRegion, TransferId, TransferState
from pdray.transfer.reshard_plan import NOTHING, CellRange, IntArray, ReshardPlan, Units, plan_for
from pdray.transfer.worker_description import read_worker_description

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class _Round:
    """One read of the arena's transport. ``landing`` is set where what it reads is to be converted:
    it writes a chamber's contents into the arena."""

    peer_id: str
    part: Callable[[int | None], BlockPart]
    remote_ids: Sequence[int]
    local_ids: Sequence[int]
    landing: Callable[[int], IsDone] | None = None
    chamber: int | None = None
    reading: TransferId | None = None


@dataclass(slots=True, eq=False)
class _Pull:
    """Done when nothing waits, is read or is written any more."""

    waiting: deque[_Round] = field(default_factory=deque)
    reading: list[_Round] = field(default_factory=list)
    writing: list[tuple[IsDone, int | None]] = field(default_factory=list)
    has_failed: bool = False

    @property
    def is_over(self) -> bool:
        return not (self.waiting or self.reading or self.writing)


class ReshardingTransport:
    """A rank's transport, over that of its arena. A pull of units becomes rounds: those that need
    staging wait for a chamber of it, in the order they came. Its ids are checked by who calls it
    (ranked.py)."""

    def __init__(
        self,
        transport: ArenaTransport,
        storage: KVStorage,
        *,
        rank: int,
        make_staging: Callable[[KVStorage], Staging] = Staging,
    ) -> None:
        """Staging is made for the first peer that needs it."""
        self.name = transport.name
        self.block_bytes = transport.block_bytes
        self.epochs = transport.epochs
        self.staging: Staging | None = None
        self._transport = transport
        self._storage = storage
        self._arena = region_of(storage)
        self._rank = rank
        self._make_staging = make_staging
        self._plans: dict[str, ReshardPlan | None] = {}
        self._free_chambers: list[int] = []
        self._ids = itertools.count()
        self._pulls: dict[TransferId, _Pull] = {}
        self._like_pulls: dict[TransferId, TransferId] = {}

    def describe(self) -> bytes:
        """Of this rank's arena alone."""
        return self._transport.describe()

    def add_peer(self, peer_id: str, description: bytes) -> None:
        """``description`` is a whole worker's. Raises TransferError where its layout is not
        convertible, too."""
        peer = read_worker_description(description, peer_id=peer_id)
        ours = self._storage.layout
        if (reason := convertible(peer.layout, ours)) is not None:
            raise TransferError(f"peer {peer_id!r}: {reason}")
        plan = plan_for(peer.layout, ours)
        if peer_id in self._plans and self._plans[peer_id] != plan:
            self.remove_peer(peer_id)
        if plan is None:
            self._transport.add_peer(peer_id, peer.ranks[self._rank])
            self._plans[peer_id] = None
            return
        if plan.needs_staging:
            self._open_staging(plan)
        self._plans[peer_id] = plan
        try:
            for rank in plan.peer_ranks(self._rank):
                self._transport.add_peer(_arena_id(peer_id, rank), peer.ranks[rank])
        except TransferError:
            self.remove_peer(peer_id)
            raise

    def remove_peer(self, peer_id: str) -> None:
        if peer_id not in self._plans:
            return
        plan = self._plans.pop(peer_id)
        if plan is None:
            self._transport.remove_peer(peer_id)
        else:
            for rank in plan.peer_ranks(self._rank):
                self._transport.remove_peer(_arena_id(peer_id, rank))

    def pull(self, peer_id: str, remote_ids: Sequence[int], local_ids: Sequence[int]) -> TransferId:
        if peer_id not in self._plans:
            raise TransferError(f"unknown peer {peer_id!r}; known: {sorted(self._plans)}")
        transfer_id = TransferId(next(self._ids))
        plan = self._plans[peer_id]
        if plan is None:
            self._like_pulls[transfer_id] = self._transport.pull(peer_id, remote_ids, local_ids)
            return transfer_id
        pull = _Pull()
        self._pulls[transfer_id] = pull
        self._fill(pull, peer_id, plan, np.asarray(remote_ids), np.asarray(local_ids))
        self._start_rounds()
        return transfer_id

    def check_epoch(self, peer_id: str, epoch: LeaseEpoch) -> TransferId:
        if peer_id not in self._plans:
            raise TransferError(f"unknown peer {peer_id!r}; known: {sorted(self._plans)}")
        # Of the owner's ranks the first has it, whose heads are among those of our first.
        arena_id = peer_id if self._plans[peer_id] is None else _arena_id(peer_id, 0)
        transfer_id = TransferId(next(self._ids))
        self._like_pulls[transfer_id] = self._transport.check_epoch(arena_id, epoch)
        return transfer_id

    def poll(self, transfer_id: TransferId) -> TransferState:
        like_id = self._like_pulls.get(transfer_id)
        if like_id is not None:
            state = self._transport.poll(like_id)
            if state is not TransferState.PENDING:
                del self._like_pulls[transfer_id]
            return state
        pull = self._pulls[transfer_id]
        self._end_reads(pull)
        self._end_writes(pull)
        self._start_rounds()
        if not pull.is_over:
            return TransferState.PENDING
        del self._pulls[transfer_id]
        return TransferState.FAILED if pull.has_failed else TransferState.DONE

    def progress(self) -> None:
        self._transport.progress()

    def close(self) -> None:
        self._transport.close()
        self._pulls.clear()
        self._like_pulls.clear()
        self._plans.clear()

    # From units to rounds

    def _fill(
        self, pull: _Pull, peer_id: str, plan: ReshardPlan, remote: IntArray, local: IntArray
    ) -> None:
        is_read = remote != NOTHING
        self._clear(pull, plan, plan.our_units(local[~is_read]))
        remote, local = remote[is_read], local[is_read]
        group_ids = plan.our_units(local).group_ids
        for group_id in np.unique(group_ids).tolist():
            chosen = group_ids == group_id
            theirs, ours = plan.their_units(remote[chosen]), plan.our_units(local[chosen])
            for cells in plan.cell_ranges(group_id, self._rank):
                arena_id = _arena_id(peer_id, cells.peer_rank)
                if plan.needs_staging:
                    rounds = self._staged_rounds(plan, group_id, cells, arena_id, theirs, ours)
                    pull.waiting += rounds
                else:
                    pull.waiting.append(self._direct(plan, group_id, cells, arena_id, theirs, ours))

    def _clear(self, pull: _Pull, plan: ReshardPlan, units: Units) -> None:
        for group_id in np.unique(units.group_ids).tolist():
            chosen = units.group_ids == group_id
            for cells in plan.cell_ranges(group_id, self._rank):
                rows = plan.our_rows(group_id, cells, units.take(chosen))
                assert self.staging is not None, "blocks of one size have no units to clear"
                is_done = self.staging.clear(plan.row_elements(group_id), rows)
                pull.writing.append((is_done, None))

    def _direct(
        self,
        plan: ReshardPlan,
        group_id: int,
        cells: CellRange,
        arena_id: str,
        theirs: Units,
        ours: Units,
    ) -> _Round:
        """Cells of whole blocks, into their place."""
        cell_bytes = plan.our_cell_bytes(group_id)
        part = BlockPart(
            remote_offset=cells.peer_cell * cell_bytes,
            num_bytes=cells.num_cells * cell_bytes,
            local=self._arena,
            local_offset=cells.own_cell * cell_bytes,
        )
        return _Round(
            peer_id=arena_id,
            part=lambda _: part,
            remote_ids=theirs.block_ids.tolist(),
            local_ids=ours.block_ids.tolist(),
        )

    def _staged_rounds(
        self,
        plan: ReshardPlan,
        group_id: int,
        cells: CellRange,
        arena_id: str,
        theirs: Units,
        ours: Units,
    ) -> Iterator[_Round]:
        """As many of their blocks in a round as a chamber has slots for; of blocks that are larger
        than a chamber, a part of their cells at a time."""
        assert self.staging is not None
        chamber_bytes = self.staging.chamber_bytes
        cell_bytes = plan.their_cell_bytes(group_id)
        block_ids, slots = np.unique(theirs.block_ids, return_inverse=True)
        for part in cells.split(max(1, chamber_bytes // cell_bytes)):
            num_slots = chamber_bytes // (part.num_cells * cell_bytes)
            for start in range(0, len(block_ids), num_slots):
                end = start + num_slots
                chosen = (start <= slots) & (slots < end)
                source_rows = plan.their_rows(
                    group_id, part, slots[chosen] - start, theirs.indices[chosen]
                )
                own_rows = plan.our_rows(group_id, part, ours.take(chosen))
                yield self._staged(
                    plan, group_id, part, arena_id, block_ids[start:end], source_rows, own_rows
                )

    def _staged(
        self,
        plan: ReshardPlan,
        group_id: int,
        cells: CellRange,
        arena_id: str,
        block_ids: IntArray,
        source_rows: IntArray,
        own_rows: IntArray,
    ) -> _Round:
        staging = self.staging
        assert staging is not None
        cell_bytes = plan.their_cell_bytes(group_id)
        slot_bytes = cells.num_cells * cell_bytes

        def part(chamber: int | None) -> BlockPart:
            assert chamber is not None
            slots = KVRegion(
                address=staging.address_of(chamber),
                num_blocks=staging.chamber_bytes // slot_bytes,
                block_bytes=slot_bytes,
                device_id=self._arena.device_id,
            )
            offset = cells.peer_cell * cell_bytes
            return BlockPart(
                remote_offset=offset, num_bytes=slot_bytes, local=slots, local_offset=0
            )

        row_elements = plan.row_elements(group_id)
        return _Round(
            peer_id=arena_id,
            part=part,
            remote_ids=block_ids.tolist(),
            local_ids=range(len(block_ids)),
            landing=lambda chamber: staging.write(
                chamber, plan.theirs.dtype, row_elements, source_rows, own_rows
            ),
        )

    # Rounds

    def _start_rounds(self) -> None:
        for pull in self._pulls.values():
            while pull.waiting:
                each = pull.waiting[0]
                if each.landing is not None:
                    if not self._free_chambers:
                        return
                    each.chamber = self._free_chambers.pop()
                del pull.waiting[0]
                self._start(pull, each)

    def _start(self, pull: _Pull, each: _Round) -> None:
        try:
            each.reading = self._transport.pull_part(
                each.peer_id, each.part(each.chamber), each.remote_ids, each.local_ids
            )
        except TransferError as error:
            self._fail(pull, each, str(error))
        else:
            pull.reading.append(each)

    def _end_reads(self, pull: _Pull) -> None:
        for each in list(pull.reading):
            assert each.reading is not None
            state = self._transport.poll(each.reading)
            if state is TransferState.PENDING:
                continue
            pull.reading.remove(each)
            if state is TransferState.FAILED:
                self._fail(pull, each, "its read failed")
            elif each.landing is not None:
                assert each.chamber is not None
                pull.writing.append((each.landing(each.chamber), each.chamber))

    def _end_writes(self, pull: _Pull) -> None:
        for is_done, chamber in list(pull.writing):
            if is_done():
                pull.writing.remove((is_done, chamber))
                if chamber is not None:
                    self._free_chambers.append(chamber)

    def _fail(self, pull: _Pull, each: _Round, reason: str) -> None:
        logger.warning("a read of %s failed: %s", each.peer_id, reason)
        pull.has_failed = True
        pull.waiting.clear()
        if each.chamber is not None:
            self._free_chambers.append(each.chamber)

    def _open_staging(self, plan: ReshardPlan) -> None:
        staging = self.staging or self._make_staging(self._storage)
        largest = max(plan.their_cell_bytes(group.group_id) for group in plan.theirs.groups)
        if largest > staging.chamber_bytes:
            raise TransferError(
                f"one layer's keys and values of one head are {largest} bytes in a block of the "
                f"peer's: more than the {staging.chamber_bytes} that are converted at a time"
            )
        if staging is self.staging:
            return
        self._transport.register(
            KVRegion(
                address=staging.address_of(0),
                num_blocks=staging.num_chambers,
                block_bytes=staging.chamber_bytes,
                device_id=self._arena.device_id,
            )
        )
        self.staging = staging
        self._free_chambers = list(range(staging.num_chambers))


def region_of(storage: KVStorage) -> KVRegion:
    """The block for what is never read among them: a first read goes there."""
    return KVRegion(
        address=storage.address,
        num_blocks=storage.num_blocks + 1,
        block_bytes=storage.block_bytes,
        device_id=storage.device_id,
    )


def _arena_id(peer_id: str, rank: int) -> str:
    return f"{peer_id} rank {rank}"
