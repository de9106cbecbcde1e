"""Blocks' bytes on their way down and up again, through NIXL and a real file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pdray.core.clock import ManualClock
from pdray.core.errors import ConfigError
from pdray.kvcache.layout import KVLayout, LayerKV
from pdray.kvcache.prefix_index import BlockName
from pdray.kvcache.storage import KVStorage
from pdray.kvcache.tiers.disk import DiskTier
from pdray.kvcache.tiers.folder import TierFolder
from pdray.kvcache.tiers.host import HostTier
from pdray.kvcache.tiers.slot_header import HEADER_BYTES
from pdray.kvcache.tiers.tiers import Tiers
from pdray.transfer.nixl_file import NixlFile

NUM_BLOCKS = 32
TTL_S = 60.0


def layout_of(model: str) -> KVLayout:
    layer = LayerKV(sliding_window=None, num_kv_heads=1, k_head_dim=8, v_head_dim=8)
    return KVLayout.of_layers([layer], model_digest=model, block_size=16, dtype="float32")


def name(number: int) -> BlockName:
    return (0, bytes([number]) * 16)


class Store:
    """A worker's device blocks and what is below them. ``host_slots`` and ``disk_slots`` count
    blocks."""

    def __init__(
        self,
        root: Path | None,
        clock: ManualClock,
        *,
        host_slots: int = 8,
        disk_slots: int = NUM_BLOCKS,
        model: str = "model",
    ) -> None:
        layout = layout_of(model)
        self.storage = KVStorage(layout, NUM_BLOCKS, "cpu")
        generator = torch.Generator().manual_seed(1)
        for block_id in range(NUM_BLOCKS):
            block = self.storage.block(block_id)
            block.copy_(torch.randint(256, block.shape, generator=generator, dtype=torch.uint8))
        self.blocks = [self.storage.block(block_id).clone() for block_id in range(NUM_BLOCKS)]
        host = HostTier(self.storage, host_slots * layout.block_bytes)
        self.tiers = Tiers(host, session_ttl_s=TTL_S, clock=clock, on_work=lambda: None)
        self.disk: DiskTier | None = None
        if root is not None:
            self.folder = TierFolder(root, layout.layout_digest)
            self.disk = DiskTier(
                self.folder,
                host,
                num_bytes=disk_slots * (HEADER_BYTES + layout.block_bytes),
                block_bytes=layout.block_bytes,
                layout_digest=layout.layout_digest,
                open_file=NixlFile,
            )
            self.tiers.open_disk(self.disk)

    def evict(self, *numbers: int) -> None:
        self.tiers.evicted([(number, name(number)) for number in numbers])
        self.tiers.check_integrity()

    def write_all(self) -> None:
        while self.tiers.write_some():
            self.tiers.check_integrity()

    def promote(self, *numbers: int) -> bool:
        """Into blocks that were zero before."""
        for number in numbers:
            self.storage.block(number).zero_()
        found = self.tiers.find(map(name, numbers))
        is_good = self.tiers.load(found, {name(number): number for number in numbers})
        self.tiers.check_integrity()
        if is_good:
            for number in numbers:
                assert torch.equal(self.storage.block(number), self.blocks[number])
        return is_good

    def has(self, *numbers: int) -> bool:
        return all(self.tiers.has(name(number)) for number in numbers)

    def close(self) -> None:
        if self.disk is not None:
            self.disk.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000.0)


def test_blocks_come_back_from_the_host_as_they_went(clock: ManualClock) -> None:
    store = Store(None, clock)
    store.evict(*range(8))
    assert store.promote(*range(8))
    assert not store.tiers.write_some()


def test_what_the_host_gives_up_first_is_on_disk(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(tmp_path, clock)
    for number in range(NUM_BLOCKS):
        store.evict(number)
        store.write_all()
    assert store.promote(*range(NUM_BLOCKS))
    assert store.tiers.counts["host"].num_promoted == 8
    assert store.tiers.counts["disk"].num_promoted == NUM_BLOCKS - 8
    store.close()


def test_without_a_disk_the_least_recently_used_are_lost(clock: ManualClock) -> None:
    store = Store(None, clock)
    store.evict(*range(8))
    assert store.promote(0)
    store.evict(8)
    assert store.has(0, 8)
    assert not store.has(1)
    assert not store.promote(0, 1)


def test_a_block_that_is_given_up_while_it_is_read_keeps_its_bytes(clock: ManualClock) -> None:
    store = Store(None, clock)
    store.evict(*range(8))
    found = store.tiers.find([name(0), name(1)])
    store.evict(*range(8, 24))
    store.storage.block(0).zero_()
    store.storage.block(1).zero_()
    assert store.tiers.load(found, {name(0): 0, name(1): 1})
    assert torch.equal(store.storage.block(0), store.blocks[0])
    assert torch.equal(store.storage.block(1), store.blocks[1])


def test_a_session_keeps_its_blocks_for_its_time_and_no_longer(clock: ManualClock) -> None:
    store = Store(None, clock)
    store.tiers.keep([(number, name(number)) for number in range(4)])
    store.evict(*range(4, NUM_BLOCKS))
    assert store.promote(*range(4))
    clock.advance(TTL_S - 1)
    store.tiers.expire()
    assert store.has(0)
    store.tiers.keep([(None, name(0))])
    clock.advance(2)
    store.tiers.expire()
    assert store.has(0)
    assert not any(store.has(number) for number in (1, 2, 3))
    clock.advance(TTL_S)
    store.tiers.expire()
    assert not store.has(0)


def test_a_session_is_written_to_disk_at_once(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(tmp_path, clock)
    store.tiers.keep([(0, name(0)), (1, name(1))])
    store.write_all()
    assert store.tiers.counts["disk"].num_demoted == 2
    store.close()


def test_a_torn_block_is_a_miss_and_never_found_again(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(tmp_path, clock)
    store.tiers.keep([(number, name(number)) for number in range(4)])
    store.write_all()
    store.evict(*range(8, 16))
    data = bytearray(store.folder.file.read_bytes())
    slot_bytes = HEADER_BYTES + store.storage.block_bytes
    data[2 * slot_bytes + HEADER_BYTES + 100] ^= 1
    store.folder.file.write_bytes(data[: 3 * slot_bytes + HEADER_BYTES + 10])
    store.close()

    store = Store(tmp_path, clock)
    assert store.promote(0, 1)
    assert not store.promote(1, 2)
    assert not store.has(2)
    assert store.tiers.counts["disk"].num_failed == 1
    assert not store.promote(3)
    assert store.promote(0, 1)
    store.close()


def test_a_forgotten_block_is_not_found_in_the_next_life(
    tmp_path: Path, clock: ManualClock
) -> None:
    store = Store(tmp_path, clock)
    store.tiers.keep([(0, name(0)), (1, name(1))])
    store.write_all()
    store.tiers.forgotten([name(0)])
    assert not store.has(0)
    store.write_all()
    store.tiers.check_integrity()
    store.close()
    store = Store(tmp_path, clock)
    assert not store.has(0)
    assert store.promote(1)
    store.close()


def test_the_next_worker_finds_what_sessions_still_keep(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(tmp_path, clock)
    store.tiers.keep([(0, name(0)), (1, name(1))])
    store.write_all()
    clock.advance(TTL_S / 2)
    store.tiers.keep([(None, name(0))])
    store.write_all()
    store.close()
    clock.advance(TTL_S / 2)
    store = Store(tmp_path, clock)
    assert store.promote(0)
    assert not store.has(1)
    clock.advance(TTL_S / 2)
    store.tiers.expire()
    assert not store.has(0)
    store.close()


def test_blocks_of_another_model_are_not_found(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(tmp_path, clock)
    store.tiers.keep([(0, name(0))])
    store.write_all()
    store.close()
    other = Store(tmp_path, clock, model="other")
    assert not other.has(0)
    # Where somebody moves the file, its headers tell.
    other.close()
    other.folder.file.write_bytes(store.folder.file.read_bytes())
    other = Store(tmp_path, clock, model="other")
    assert not other.has(0)
    other.close()
    same = Store(tmp_path, clock)
    assert same.promote(0)
    same.close()


def test_a_smaller_disk_tier_takes_what_it_has_room_for(tmp_path: Path, clock: ManualClock) -> None:
    store = Store(tmp_path, clock)
    store.tiers.keep([(number, name(number)) for number in range(8)])
    store.write_all()
    store.close()
    store = Store(tmp_path, clock, disk_slots=4)
    assert sum(store.has(number) for number in range(8)) == 4
    store.tiers.check_integrity()
    store.close()


def test_two_workers_take_a_folder_each(tmp_path: Path, clock: ManualClock) -> None:
    first, second = Store(tmp_path, clock), Store(tmp_path, clock)
    assert first.folder.path != second.folder.path
    first.close()
    third = Store(tmp_path, clock)
    assert third.folder.path == first.folder.path
    second.close()
    third.close()


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigError, match=r"disk_path.*file"):
        TierFolder(path, "0" * 64)


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_tiers import *
from pdray.core.errors import TransferError
from pdray.kvcache.tiers.tiers import RETRY_S

clock = ManualClock(1_000_000.0)
store = Store(Path(sys.argv[1]), clock)
slot_bytes = HEADER_BYTES + store.storage.block_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * slot_bytes + 100, resource.RLIM_INFINITY))
store.tiers.keep([(0, name(0)), (1, name(1))])
store.write_all()
store.tiers.keep([(number, name(number)) for number in (2, 3, 4)])
with pytest.raises(TransferError):
    store.write_all()
assert store.tiers.counts["disk"].num_failed == 3
assert not store.tiers.write_some(), "written, right after a failure"
store.evict(*range(8, 11))
assert store.promote(0, 1, 2, 3, 4), "what was there must still be there"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
clock.advance(RETRY_S)
store.tiers.keep([(None, name(2))])
store.write_all()
assert store.tiers.counts["disk"].num_demoted >= 3, "not written again once there is room"
store.close()
"""


def test_a_full_disk_stops_the_writing_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_worker_leaves_its_blocks_to_the_next(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_tiers import *

store = Store(Path(sys.argv[1]), ManualClock(1_000_000.0))
store.tiers.keep([(number, name(number)) for number in range(6)])
store.write_all()
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    store = Store(tmp_path, ManualClock(1_000_001.0))
    assert store.promote(*range(6))
    store.close()
