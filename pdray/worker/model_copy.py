"""Whether a worker that starts reads its model out of a peer, and how that is the very model."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pdray.core.errors import ConfigError, LinkError, TransferError
from pdray.core.model_source import ModelSource, is_peer_faster
from pdray.core.placement import WorkerAddress
from pdray.engine.checkpoint import memory_bytes, open_checkpoint
from pdray.engine.model_files import ModelFile, list_model_files, weight_bytes
from pdray.worker.file_reading import LentModel
from pdray.worker.file_slots import NUM_SLOTS, SLOT_BYTES
from pdray.worker.memory_files import MemoryFiles, write_all

logger = logging.getLogger(__name__)

_SAMPLE_BYTES = 16 << 20
"""From one byte that is looked for in the page cache to the next."""
_MAX_MEMORY_SHARE = 0.5


async def copy_model(
    source: ModelSource,
    own: Path | None,
    peers: Sequence[WorkerAddress],
    *,
    reader_id: str,
    transport: str,
) -> MemoryFiles | None:
    """None where the disk is to be read: it is as fast, or no peer lends. ``own`` is the model on
    this machine, None where it would have to be made or downloaded, which a peer always beats."""
    if source is ModelSource.DISK:
        return None
    sample = None
    if own is not None:
        sample = await asyncio.to_thread(_sample_disk, list_model_files(own))
        if source is ModelSource.AUTO and not sample.is_beatable:
            return None
    for peer in peers:
        try:
            async with LentModel(peer, reader_id=reader_id, transport=transport) as lent:
                if sample is not None:
                    peer_bytes_per_s = await _sample_peer(lent, sample)
                    if source is ModelSource.AUTO and not sample.is_slower_than(peer_bytes_per_s):
                        return None
                return await _copy(lent, own)
        except (ConfigError, LinkError, OSError, TransferError) as error:
            logger.warning("no model from worker %s: %s", peer.worker_id, error)
    return None


@dataclass(frozen=True, slots=True)
class _DiskSample:
    """``pieces`` of the largest ``file`` of weights, by where they begin. ``weight_bytes`` are of
    all files; ``is_cached`` where most of them are in the page cache."""

    file: ModelFile
    pieces: dict[int, bytes]
    bytes_per_s: float
    weight_bytes: int
    is_cached: bool

    @property
    def is_beatable(self) -> bool:
        """By the fastest peer that can be thought of."""
        return not self.is_cached and self.is_slower_than(math.inf)

    def is_slower_than(self, peer_bytes_per_s: float) -> bool:
        return is_peer_faster(
            self.weight_bytes,
            disk_bytes_per_s=self.bytes_per_s,
            peer_bytes_per_s=peer_bytes_per_s,
        )


async def _copy(lent: LentModel, own: Path | None) -> MemoryFiles:
    num_bytes = sum(file.num_bytes for file in lent.files)
    if num_bytes > _MAX_MEMORY_SHARE * memory_bytes():
        raise TransferError(f"its {num_bytes / 1e9:.1f} GB would fill this machine's memory")
    copy = MemoryFiles()
    started_at = time.monotonic()
    try:
        for number, file in enumerate(lent.files):
            descriptor = copy.add(file.name, file.num_bytes, is_weights=file.is_weights)
            offsets = range(0, file.num_bytes, SLOT_BYTES)
            await lent.read(number, offsets, partial(write_all, descriptor))
        if own is not None:
            _check_alike(own, copy.model_path)
    except BaseException:
        copy.close()
        raise
    seconds = time.monotonic() - started_at
    logger.info("model from a peer: %.0f MB in %.2f s", num_bytes / 1e6, seconds)
    return copy


def _sample_disk(files: Sequence[ModelFile]) -> _DiskSample:
    is_cached = _is_in_memory(files)  # before it is read
    file = max((each for each in files if each.is_weights), key=lambda each: each.num_bytes)
    started_at = time.monotonic()
    with file.path.open("rb", buffering=0) as opened:
        pieces = {
            offset: os.pread(opened.fileno(), SLOT_BYTES, offset)
            for offset in _sample_offsets(file.num_bytes)
        }
    seconds = time.monotonic() - started_at
    sampled_bytes = sum(map(len, pieces.values()))
    return _DiskSample(file, pieces, sampled_bytes / seconds, weight_bytes(files), is_cached)


async def _sample_peer(lent: LentModel, disk: _DiskSample) -> float:
    """Bytes per second of the same pieces. Raises TransferError where they are not the same."""
    name = disk.file.name
    found = {each.name: (number, each.num_bytes) for number, each in enumerate(lent.files)}
    number, num_bytes = found.get(name, (0, 0))
    if num_bytes != disk.file.num_bytes:
        raise TransferError(f"it has no {name} of the size of the one on this disk")
    pieces: dict[int, bytes] = {}

    def keep(offset: int, data: memoryview) -> None:
        pieces[offset] = bytes(data)

    offsets = list(disk.pieces)
    await lent.read(number, offsets[:1], keep)  # it makes the connection
    started_at = time.monotonic()
    await lent.read(number, offsets, keep)
    seconds = time.monotonic() - started_at
    if pieces != disk.pieces:
        raise TransferError(f"its {name} has other weights than the one on this disk")
    bytes_per_s = sum(map(len, pieces.values())) / seconds
    rates = (f"{rate / 1e6:.0f} MB/s" for rate in (disk.bytes_per_s, bytes_per_s))
    logger.info("weights from this disk %s, from worker %s", *rates)
    return bytes_per_s


def _sample_offsets(num_bytes: int) -> list[int]:
    """So many that all slots are in use twice, far from each other."""
    num_chunks = max(1, num_bytes // SLOT_BYTES)
    step = max(1, num_chunks // (2 * NUM_SLOTS))
    return [number * SLOT_BYTES for number in range(0, num_chunks, step)]


def _check_alike(own: Path, copied: Path) -> None:
    """Raises TransferError."""
    ours, theirs = open_checkpoint(own), open_checkpoint(copied)
    if ours.tensors != theirs.tensors:
        raise TransferError(
            "the peer's weights have other shapes or dtypes than those on this disk"
        )
    if not ours.is_gguf and _config_of(ours.path) != _config_of(theirs.path):
        raise TransferError("the peer's config.json is not the one on this disk")


def _config_of(folder: Path) -> bytes:
    return (folder / "config.json").read_bytes()


def _is_in_memory(files: Sequence[ModelFile]) -> bool:
    """Most of the weights are in the page cache: they are read at the speed of memory."""
    looks = [
        _is_cached(file.path, offset)
        for file in files
        if file.is_weights
        for offset in range(0, file.num_bytes, _SAMPLE_BYTES)
    ]
    return bool(looks) and sum(looks) > len(looks) / 2


def _is_cached(path: Path, offset: int) -> bool:
    with path.open("rb", buffering=0) as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:  # it is not, or this file system cannot tell
            return False
