"""What a worker has below its device's blocks: evicted ones go down, a prompt's come up while it
waits, those of a session stay for its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from pdray.core.clock import Clock, EpochClock
from pdray.core.errors import TransferError
from pdray.core.snapshot import TierSnapshot
from pdray.engine.engine import Engine
from pdray.engine.holds import BlockHold
from pdray.engine.prefix_fill import PrefixFill
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.kvcache.prefix_index import BlockName, names_of_hit
from pdray.kvcache.tiers.base import TierConfig
from pdray.kvcache.tiers.disk import DiskTier
from pdray.kvcache.tiers.folder import TierFolder
from pdray.kvcache.tiers.host import HostTier
from pdray.kvcache.tiers.tiers import Found, Tiers
from pdray.metrics.prometheus import WorkerMetrics
from pdray.transfer.nixl_file import NixlFile
from pdray.worker.tier_thread import TierThread

KEPT_AT_ONCE = 32
"""Of a session's blocks: others must not miss the room that these are held in."""


class Tiering(Protocol):
    """Of one worker. Lives on the event loop."""

    def start(self) -> None:
        """Returns once an earlier worker's blocks are known; may take seconds. Raises ConfigError
        for a folder that cannot be, and TransferError."""

    def settle(self) -> None:
        """Returns once the copies that are due are made, or cannot be."""

    def stop(self) -> None:
        """Waits for the copies that are being made. May be called twice."""

    def tick(self) -> None:
        """Now and then. Raises TransferError where what makes the copies has ended by itself."""

    def snapshots(self) -> list[TierSnapshot]:
        """Of each tier there is."""

    def check_integrity(self) -> None:
        """Raises AssertionError where the tiers' books do not add up."""

    def has_more(self, prefix_hashes: Sequence[bytes]) -> bool:
        """Whether a prompt would find more of itself, were all that is here on the device."""

    async def promote(self, prefix_hashes: Sequence[bytes]) -> bool:
        """Returns when what is here of the prefix is in the prefix cache; False where there is no
        room for it. Where a block turns out to be lost, what comes before it still counts."""


class NoTiers:
    """A Tiering: what is evicted is lost."""

    def start(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def tick(self) -> None:
        pass

    def snapshots(self) -> list[TierSnapshot]:
        return []

    def check_integrity(self) -> None:
        pass

    def has_more(self, prefix_hashes: Sequence[bytes]) -> bool:
        return False

    async def promote(self, prefix_hashes: Sequence[bytes]) -> bool:
        return True


class EngineTiers:
    """A Tiering. Copies are made in a thread of its own, but for those of blocks that are being
    evicted."""

    def __init__(
        self,
        config: TierConfig,
        engine: Engine,
        *,
        clock: Clock,
        on_promoted: Callable[[int, float], None],
    ) -> None:
        """``clock`` counts seconds since 1970. ``on_promoted`` is told of blocks and seconds."""
        assert engine.ranks is None, "tiers hold the blocks of one rank"
        self._config = config
        self._engine = engine
        self._on_promoted = on_promoted
        self.tiers = Tiers(
            HostTier(engine.storage, config.host_bytes),
            session_ttl_s=config.session_ttl_s,
            clock=clock,
            on_work=lambda: self._thread.wake(),
        )
        has_disk = config.disk_bytes is not None
        self._thread = TierThread(self.tiers, self._open_disk if has_disk else None)
        engine.use_tiers(self.tiers, on_turn_end=self._keep_soon)

    def start(self) -> None:
        self._thread.start()

    def settle(self) -> None:
        self._thread.submit(self._thread.write_all, is_urgent=False).result()

    def stop(self) -> None:
        self._thread.stop()

    def snapshots(self) -> list[TierSnapshot]:
        return self.tiers.snapshots()

    def check_integrity(self) -> None:
        self.tiers.check_integrity()

    def tick(self) -> None:
        if not self._thread.is_running:
            raise TransferError("the tiers' thread has ended: no KV goes to them or comes back")
        self.tiers.expire()
        self._thread.wake()

    def _open_disk(self) -> DiskTier:
        config, layout = self._config, self._engine.layout
        assert config.disk_path is not None
        assert config.disk_bytes is not None
        return DiskTier(
            TierFolder(config.disk_path, layout.layout_digest),
            self.tiers.host,
            num_bytes=config.disk_bytes,
            block_bytes=layout.block_bytes,
            layout_digest=layout.layout_digest,
            open_file=NixlFile,
        )

    # Up

    def has_more(self, prefix_hashes: Sequence[bytes]) -> bool:
        prefixes = self._engine.shared_prefixes
        return self._count(prefix_hashes) > prefixes.count_tokens(prefix_hashes)

    def _count(self, prefix_hashes: Sequence[bytes]) -> int:
        return self._engine.shared_prefixes.count_tokens(prefix_hashes, also=self.tiers.has)

    async def promote(self, prefix_hashes: Sequence[bytes]) -> bool:
        num_tokens = self._count(prefix_hashes)
        while num_tokens and not await self._promote(prefix_hashes, num_tokens):
            num_left = self._count(prefix_hashes)
            if num_left >= num_tokens:
                return not self.has_more(prefix_hashes)
            num_tokens = num_left
        return True

    async def _promote(self, prefix_hashes: Sequence[bytes], num_tokens: int) -> bool:
        # Pinned first: what the fill pushes out of the device must not push these out here.
        found = self.tiers.find(self._names(prefix_hashes, num_tokens))
        fill = self._engine.prefix_fills.begin(prefix_hashes, num_tokens)
        if fill is None:
            self.tiers.release(found)
            return False
        started_at = time.perf_counter()
        loading = self._thread.submit(partial(self._load, found, fill), is_urgent=True)
        try:
            num_blocks = await asyncio.wrap_future(loading)
        except TransferError:  # the worker stops
            self._engine.prefix_fills.abandon(fill)
            return False
        if num_blocks:
            self._on_promoted(num_blocks, time.perf_counter() - started_at)
        return num_blocks > 0

    def _load(self, found: Found, fill: PrefixFill) -> int:
        """How many blocks have come: all, or none that could be used."""
        blocks = {
            (run.group_id, fill.block_hashes[number]): block_id
            for run in fill.missing
            for number, block_id in enumerate(run.block_ids, run.first_block)
        }
        if self.tiers.load(found, blocks):
            self._engine.prefix_fills.finish(fill)
            return len(blocks)
        self._engine.prefix_fills.abandon(fill)
        return 0

    # Down

    def _keep_soon(self, prefix_hashes: tuple[bytes, ...]) -> None:
        """The engine calls it, with its lock held."""
        self._thread.submit(partial(self._keep, prefix_hashes), is_urgent=False)

    def _keep(self, prefix_hashes: Sequence[bytes]) -> None:
        names = self._names(prefix_hashes, len(prefix_hashes) * HASH_TOKENS)
        step = min(KEPT_AT_ONCE, self.tiers.host.entries.num_slots)
        for start in range(0, len(names), step):
            batch = names[start : start + step]
            hold = BlockHold()
            block_ids = self._engine.shared_prefixes.hold_blocks(batch, hold)
            self.tiers.keep(list(zip(block_ids, batch, strict=True)))
            self._engine.holds.release(hold)
            # Before the next ones take their place in a small host tier.
            self._thread.write_all()

    def _names(self, prefix_hashes: Sequence[bytes], num_tokens: int) -> list[BlockName]:
        layout = self._engine.layout
        step = layout.block_size // HASH_TOKENS
        num_hashes = num_tokens // layout.block_size * step
        hashes = prefix_hashes[step - 1 : num_hashes : step]
        return names_of_hit(layout.groups, hashes, layout.block_size)


def make_tiering(config: TierConfig | None, engine: Engine, metrics: WorkerMetrics) -> Tiering:
    if config is None:
        return NoTiers()
    return EngineTiers(config, engine, clock=EpochClock(), on_promoted=metrics.tiers.promoted)
