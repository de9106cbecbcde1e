"""The tiers below the device's blocks as one store: what comes down, what goes up, what is kept.

Any thread may call. Blocks of the device that are given here keep their bytes until the call
returns; entries are pinned while their bytes are in use without the lock.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pdray.core.clock import Clock
from pdray.core.errors import TransferError
from pdray.core.snapshot import TierSnapshot
from pdray.kvcache.prefix_index import BlockName
from pdray.kvcache.tiers.base import Tier
from pdray.kvcache.tiers.disk import DiskTier
from pdray.kvcache.tiers.entries import TierEntry
from pdray.kvcache.tiers.host import HostTier

MAX_HEADROOM = 512
"""Slots of the host tier whose blocks are on disk before others need the place."""
RETRY_S = 30.0
"""Without a write, after the disk took one badly."""


@dataclass(slots=True)
class TierCounts:
    """Blocks since the start, of one tier."""

    num_demoted: int = 0
    num_promoted: int = 0
    num_failed: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """Where each of some blocks is, pinned until ``Tiers.load`` or ``Tiers.release``."""

    places: dict[BlockName, tuple[Tier, TierEntry]] = field(default_factory=dict)


class Tiers:
    """A host tier, and a disk tier below it once that is open. Evicted blocks go to the host;
    those that the host would give up next, and those of sessions, are written to disk.

    ``on_work`` is called when there is something for ``write_some`` to do: any thread, no waiting.
    """

    def __init__(
        self, host: HostTier, *, session_ttl_s: float, clock: Clock, on_work: Callable[[], None]
    ) -> None:
        """``clock`` counts seconds since 1970: what it says is read in other lives."""
        self.host = host
        self._disk: DiskTier | None = None
        self._session_ttl_s = session_ttl_s
        self._clock = clock
        self._on_work = on_work
        self._lock = threading.Lock()
        self._headroom = min(MAX_HEADROOM, -(-host.entries.num_slots // 8))
        # To be written for a session, to be erased, to be kept longer than is written.
        self._wanted: dict[BlockName, None] = {}
        self._erased: list[TierEntry] = []
        self._prolonged: list[TierEntry] = []
        self._resume_at = 0.0
        self.counts = {"host": TierCounts(), "disk": TierCounts()}

    def open_disk(self, disk: DiskTier) -> None:
        """From here on there is one; for the thread that owns it."""
        disk.find_entries(self._clock.now())
        with self._lock:
            self._disk = disk

    @property
    def tiers(self) -> list[Tier]:
        """The nearest first."""
        return [self.host] if self._disk is None else [self.host, self._disk]

    # From the device

    def evicted(self, blocks: Sequence[tuple[int, BlockName]]) -> None:
        """The device's pool gives them to others."""
        with self._lock:
            self._save(blocks)
            has_work = self._disk is not None and self._host_is_short
        if has_work:
            self._on_work()

    @property
    def _host_is_short(self) -> bool:
        return self.host.entries.num_free_slots < self._headroom

    def keep(self, blocks: Sequence[tuple[int | None, BlockName]]) -> None:
        """A session's, each with the block of the device that it is in, if it is: copies stay
        here until the session's time to live has passed."""
        until = self._clock.now() + self._session_ttl_s
        with self._lock:
            self._save([(each, name) for each, name in blocks if each is not None], until)
            for _, name in blocks:
                self._keep(name, until)
        self._on_work()

    def _save(self, blocks: Iterable[tuple[int, BlockName]], until: float | None = None) -> None:
        """Under the lock: a copy takes microseconds. ``until`` is when a session ends."""
        host, counts = self.host.entries, self.counts["host"]
        added: list[tuple[int, TierEntry]] = []
        for block_id, name in blocks:
            if (known := host.find(name)) is not None:
                host.use(known)
            elif (entry := host.add(name)) is not None:
                host.unpin(entry)
                if until is not None:  # or the next one would take its place
                    host.keep(entry, until)
                added.append((block_id, entry))
            else:
                counts.num_failed += 1
        # Some may have been given up for later ones.
        left = [(block_id, entry) for block_id, entry in added if not entry.is_removed]
        self.host.save([block_id for block_id, _ in left], [entry for _, entry in left])
        counts.num_demoted += len(left)

    def _keep(self, name: BlockName, until: float) -> None:
        if (entry := self.host.entries.find(name)) is not None:
            self.host.entries.keep(entry, until)
        if self._disk is None:
            return
        on_disk = self._disk.entries.find(name)
        if on_disk is not None:
            self._disk.entries.keep(on_disk, until)
            self._prolonged.append(on_disk)
        elif entry is not None:
            self._wanted[name] = None

    def forgotten(self, names: Iterable[BlockName]) -> None:
        """Their bytes are not to be trusted."""
        with self._lock:
            for name, tier in itertools.product(names, self.tiers):
                if (entry := tier.entries.find(name)) is not None:
                    self._drop(tier, entry)
        self._on_work()

    def expire(self) -> None:
        """Sessions whose time has passed lose their blocks."""
        now = self._clock.now()
        with self._lock:
            for tier in self.tiers:
                tier.entries.expire(now)

    def _drop(self, tier: Tier, entry: TierEntry) -> None:
        if tier is self._disk and not entry.is_removed:
            tier.entries.pin(entry)
            self._erased.append(entry)
        tier.entries.remove(entry)

    # To the device

    def has(self, name: BlockName) -> bool:
        with self._lock:
            return any(name in tier.entries for tier in self.tiers)

    def find(self, names: Iterable[BlockName]) -> Found:
        """Those of them that are here, each in the nearest tier."""
        found = Found()
        with self._lock:
            for name in names:
                for tier in self.tiers:
                    if (entry := tier.entries.find(name)) is not None:
                        tier.entries.use(entry)
                        tier.entries.pin(entry)
                        found.places[name] = (tier, entry)
                        break
        return found

    def load(self, found: Found, block_ids: dict[BlockName, int]) -> bool:
        """Fills these blocks of the device; for the disk's thread. False where some of them did
        not have the bytes that were stored, or are not among those found."""
        is_good = block_ids.keys() <= found.places.keys()
        for tier in self.tiers if is_good else ():
            names = [name for name in block_ids if found.places[name][0] is tier]
            entries = [found.places[name][1] for name in names]
            loaded = tier.load(entries, [block_ids[name] for name in names])
            counts = self.counts[tier.name]
            counts.num_promoted += sum(loaded)
            counts.num_failed += len(loaded) - sum(loaded)
            with self._lock:
                for entry, is_loaded in zip(entries, loaded, strict=True):
                    if not is_loaded:
                        self._drop(tier, entry)
            is_good = is_good and all(loaded)
        self.release(found)
        return is_good

    def release(self, found: Found) -> None:
        """Nobody will load them."""
        with self._lock:
            for tier, entry in found.places.values():
                tier.entries.unpin(entry)
        found.places.clear()

    # From the host to the disk

    def write_some(self) -> bool:
        """Writes a batch of what should be on disk; for the disk's thread. False where there was
        nothing. Raises TransferError where the disk is full or broken: for a while after that
        nothing is written."""
        disk = self._disk
        now = self._clock.now()
        if disk is None or now < self._resume_at:
            return False
        try:
            return self._write_ends(disk) or self._write_blocks(disk)
        except TransferError:
            self._resume_at = now + RETRY_S
            raise

    def _write_ends(self, disk: DiskTier) -> bool:
        """Headers of blocks that are there already."""
        with self._lock:
            erased, self._erased = self._erased, []
            prolonged = [entry for entry in self._prolonged if not entry.is_removed]
            self._prolonged = []
            for entry in prolonged:
                disk.entries.pin(entry)
        is_written = False
        try:
            disk.erase(erased)
            disk.store_ends(prolonged)
            is_written = True
        finally:
            with self._lock:
                for entry in [*erased, *prolonged] if is_written else prolonged:
                    disk.entries.unpin(entry)
                if not is_written:  # they must not be found again, in this life or the next
                    self._erased += erased
        return bool(erased or prolonged)

    def _write_blocks(self, disk: DiskTier) -> bool:
        with self._lock:
            pairs = self._take_due(disk)
        if not pairs:
            return False
        counts = self.counts["disk"]
        is_written = False
        try:
            disk.store([to for _, to in pairs], [self.host.row(entry) for entry, _ in pairs])
            counts.num_demoted += len(pairs)
            is_written = True
        finally:
            with self._lock:
                for entry, to in pairs:
                    self.host.entries.unpin(entry)
                    if not is_written:
                        counts.num_failed += 1
                        disk.entries.remove(to)
                    disk.entries.unpin(to)
        return True

    def _take_due(self, disk: DiskTier) -> list[tuple[TierEntry, TierEntry]]:
        """The next batch, pinned on both sides."""
        pairs: list[tuple[TierEntry, TierEntry]] = []
        for entry in list(itertools.islice(self._due(disk), disk.batch_blocks)):
            if (to := disk.entries.add(entry.name)) is None:
                break
            if entry.keep_until is not None:
                disk.entries.keep(to, entry.keep_until)
            self._wanted.pop(entry.name, None)
            self.host.entries.pin(entry)
            pairs.append((entry, to))
        return pairs

    def _due(self, disk: DiskTier) -> Iterable[TierEntry]:
        """Blocks of the host that should be on disk and are not: those of sessions, and those
        that would be given up next."""
        host = self.host.entries
        wanted = [entry for name in self._wanted if (entry := host.find(name)) is not None]
        self._wanted = {entry.name: None for entry in wanted if entry.name not in disk.entries}
        yield from (entry for entry in wanted if entry.name in self._wanted)
        num_next = max(0, self._headroom - host.num_free_slots)
        for entry in itertools.islice(host, num_next):
            if entry.name not in disk.entries and entry.name not in self._wanted:
                yield entry

    def snapshots(self) -> list[TierSnapshot]:
        with self._lock:
            return [
                TierSnapshot(
                    tier=tier.name,
                    num_blocks=len(tier.entries),
                    num_bytes=len(tier.entries) * self.host.block_bytes,
                    num_demoted=self.counts[tier.name].num_demoted,
                    num_promoted=self.counts[tier.name].num_promoted,
                    num_failed=self.counts[tier.name].num_failed,
                )
                for tier in self.tiers
            ]

    def check_integrity(self) -> None:
        with self._lock:
            for tier in self.tiers:
                tier.entries.check_integrity()
