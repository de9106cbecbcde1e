"""What peers may read of a worker's prefix cache: what they ask for and it has."""

from __future__ import annotations

import itertools

from pdray.core.handoff import Watermark
from pdray.core.request import WorkerId
from pdray.engine.engine import Engine
from pdray.engine.holds import BlockHold
from pdray.link.connection import Connection
from pdray.link.messages import Borrow, Lent
from pdray.worker.lending import Lending
from pdray.worker.tiering import Tiering


class PrefixLending:
    """Of one worker; `lending.py` holds the blocks until the reader is done."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        lease_s: float,
        engine: Engine,
        tiering: Tiering,
        lending: Lending,
    ) -> None:
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._engine = engine
        self._tiering = tiering
        self._lending = lending
        self._lease_numbers = itertools.count()

    async def answer(self, reader: Connection, message: Borrow) -> None:
        """At once, or once what tiers have of it is on the device."""
        if self._tiering.has_more(message.prefix_hashes):
            await self._tiering.promote(message.prefix_hashes)
        if not reader.is_closed:
            reader.send(self._lend(reader, message))

    def _lend(self, reader: Connection, message: Borrow) -> Lent:
        watermark = None
        # Blocks that cannot be converted are not the reader's to read, whatever they are called.
        if reader.peer_hello.layout_digest == self._engine.layout.content_digest:
            watermark = self._grant(reader, message)
        return Lent(number=message.number, lease_s=self._lease_s, watermark=watermark)

    def _grant(self, reader: Connection, message: Borrow) -> Watermark | None:
        hold = BlockHold()
        num_tokens, runs = self._engine.shared_prefixes.hold(
            message.prefix_hashes, hold, step_tokens=message.block_size
        )
        if num_tokens == 0:
            return None
        lease_id = f"{self._worker_id}/prefix/{next(self._lease_numbers)}"
        return Watermark(
            lease_id=lease_id,
            ready_tokens=num_tokens,
            runs=runs,
            first_token_id=None,
            epoch=self._lending.grant(lease_id, reader, hold),
        )
