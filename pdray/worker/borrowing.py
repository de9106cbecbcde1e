"""A prompt's KV out of a peer's prefix cache, while the prompt waits: ask, read, keep.

Whatever goes wrong costs a little time: what has not come is computed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.core.errors import LinkError, TransferError
from pdray.core.handoff import BlockRun, Watermark
from pdray.core.placement import PrefixSource
from pdray.engine.engine import Engine
from pdray.engine.prefix_fill import PrefixFill
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.link.connection import Connection
from pdray.link.messages import Acknowledge, Borrow, Lent
from pdray.link.peers import PeerLinks
from pdray.metrics.prometheus import WorkerMetrics
from pdray.transfer.reading import READER_SHARE
from pdray.transfer.reshard_plan import NOTHING, ReshardPlan
from pdray.transfer.transfer_thread import TransferThread
from pdray.worker.read_log import ReadLog
from pdray.worker.readable_peers import ReadablePeers

logger = logging.getLogger(__name__)

MIN_TOKENS = 32
"""Fewer are computed sooner than asked for."""
ANSWER_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    source: Connection
    answer: asyncio.Future[Lent | None]


class Borrowing:
    """What one worker borrows. Lives on the event loop; reads go on in the transfer thread."""

    def __init__(
        self,
        *,
        engine: Engine,
        transfer: TransferThread,
        peers: PeerLinks,
        readable: ReadablePeers,
        metrics: WorkerMetrics,
        read_log: ReadLog,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._transfer = transfer
        self._peers = peers
        self._readable = readable
        self._metrics = metrics
        self._read_log = read_log
        self._clock = clock
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count()

    def is_worthwhile(self, source: PrefixSource, prefix_hashes: Sequence[bytes]) -> bool:
        num_here = self._engine.shared_prefixes.count_tokens(prefix_hashes)
        num_there = min(source.num_tokens, len(prefix_hashes) * HASH_TOKENS)
        return num_there - num_here >= MIN_TOKENS

    async def borrow(self, source: PrefixSource, prefix_hashes: Sequence[bytes]) -> None:
        """Returns when what the source has of the prefix is in the prefix cache here, or nothing
        will come of it."""
        try:
            link = await self._peers.get(source.address)
        except LinkError as error:
            logger.info("no prefix from %s: %s", source.address.worker_id, error)
            return
        asked_at = self._clock.now()
        lent = await self._ask(link, prefix_hashes)
        if lent is None or lent.watermark is None:
            self._metrics.prefix_not_borrowed()
            return
        num_here = self._engine.shared_prefixes.count_tokens(prefix_hashes)
        failure = await self._take(link, lent, lent.watermark, prefix_hashes, asked_at)
        if failure is None:
            self._metrics.prefix_borrowed(lent.watermark.ready_tokens - num_here)
        else:
            logger.info("no prefix from %s: %s", link.peer_id, failure)
            self._metrics.prefix_not_borrowed()
        if not link.is_closed:
            link.send(Acknowledge(lease_id=lent.watermark.lease_id, failure=failure))

    async def _ask(self, link: Connection, prefix_hashes: Sequence[bytes]) -> Lent | None:
        number = next(self._numbers)
        asked = _Asked(link, asyncio.get_running_loop().create_future())
        self._asked[number] = asked
        link.send(
            Borrow(
                number=number,
                prefix_hashes=tuple(prefix_hashes),
                block_size=self._engine.layout.block_size,
            )
        )
        try:
            return await asyncio.wait_for(asked.answer, ANSWER_TIMEOUT_S)
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def on_lent(self, source: Connection, message: Lent) -> None:
        asked = self._asked.get(message.number)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(message)
        elif message.watermark is not None:
            failure = "its answer came too late"
            source.send(Acknowledge(lease_id=message.watermark.lease_id, failure=failure))

    def on_lost(self, source: Connection) -> None:
        for asked in self._asked.values():
            if asked.source is source and not asked.answer.done():
                asked.answer.set_result(None)

    async def _take(
        self,
        link: Connection,
        lent: Lent,
        watermark: Watermark,
        prefix_hashes: Sequence[bytes],
        asked_at: float,
    ) -> str | None:
        """Why it failed, if it did; no read is in flight any more."""
        fill = self._engine.prefix_fills.begin(prefix_hashes, watermark.ready_tokens)
        if fill is None:
            return "it is here by now, or there is no room for it"
        self._readable.add(link)
        failure = await self._read(link, fill, watermark)
        # The owner counts from when it was asked, which is later.
        if failure is None and self._clock.now() >= asked_at + lent.lease_s * READER_SHARE:
            failure = "it came too late"
        if failure is None:
            self._engine.prefix_fills.finish(fill)
        else:
            self._engine.prefix_fills.abandon(fill)
        return failure

    async def _read(self, link: Connection, fill: PrefixFill, watermark: Watermark) -> str | None:
        plan = self._readable.plan_of(link)
        if plan is None:
            blocks = matching_blocks(watermark.runs, fill.missing)
        else:
            blocks = matching_units(plan, watermark.runs, fill.missing)
        if blocks is None:
            return "it has lent too little"
        remote, local = blocks
        reading = self._transfer.pull(
            link.peer_id, remote, local, flow=watermark.lease_id, epoch=watermark.epoch
        )
        try:
            report = await asyncio.wrap_future(reading)
        except TransferError as error:
            return str(error)
        self._read_log.finished(report, link, is_hidden=True)
        return None


def matching_blocks(
    there: Sequence[BlockRun], here: Sequence[BlockRun]
) -> tuple[list[int], list[int]] | None:
    """Ids there, and ids here, of the blocks that are wanted here; None where one is not there."""
    owned = {
        (run.group_id, number): block_id
        for run in there
        for number, block_id in enumerate(run.block_ids, run.first_block)
    }
    remote: list[int] = []
    local: list[int] = []
    for run in here:
        for number, block_id in enumerate(run.block_ids, run.first_block):
            if (run.group_id, number) not in owned:
                return None
            remote.append(owned[run.group_id, number])
            local.append(block_id)
    return remote, local


def matching_units(
    plan: ReshardPlan, there: Sequence[BlockRun], here: Sequence[BlockRun]
) -> tuple[list[int], list[int]] | None:
    """As ``matching_blocks``, where the layouts differ."""
    owned = {run.group_id: run for run in there}
    remote: list[int] = []
    local: list[int] = []
    for run in here:
        if run.group_id not in owned:
            return None
        theirs, ours, end = plan.read(
            owned[run.group_id],
            first_block=run.first_block,
            block_ids=run.block_ids,
            start_token=run.first_block * plan.ours.block_size,
            is_last=False,
        )
        if NOTHING in theirs or end < run.end_block * plan.ours.block_size:
            return None
        remote += theirs
        local += ours
    return remote, local
