"""Two tiers and a device under any order of calls, with a file that fails now and then: what comes
back is what went, what a session keeps stays for its time where there is room, nothing leaks."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pdray.core.clock import ManualClock
from pdray.core.errors import TransferError
from pdray.kvcache.layout import KVLayout, LayerKV
from pdray.kvcache.prefix_index import BlockName
from pdray.kvcache.storage import KVStorage
from pdray.kvcache.tiers.base import Move
from pdray.kvcache.tiers.disk import DiskTier
from pdray.kvcache.tiers.folder import TierFolder
from pdray.kvcache.tiers.host import HostTier
from pdray.kvcache.tiers.slot_header import HEADER_BYTES
from pdray.kvcache.tiers.tiers import Tiers
from pdray.transfer.nixl_file import NixlFile

NUM_NAMES = 12
HOST_SLOTS = 4
TTL_S = 60.0
NUMBERS = st.lists(st.integers(0, NUM_NAMES - 1), min_size=1, max_size=4, unique=True)

LAYOUT = KVLayout.of_layers(
    [LayerKV(sliding_window=None, num_kv_heads=1, k_head_dim=8, v_head_dim=8)],
    model_digest="model",
    block_size=16,
    dtype="float32",
)
SLOT_BYTES = -(-(HEADER_BYTES + LAYOUT.block_bytes) // HEADER_BYTES) * HEADER_BYTES


class FailingFile(NixlFile):
    """A real file whose next writes fail, where it is told so."""

    is_full = False

    def write(self, moves: list[Move]) -> None:  # type: ignore[override]
        if self.is_full:
            raise TransferError("no space left")
        super().write(moves)


def name(number: int) -> BlockName:
    return (0, bytes([number]) * 16)


class TiersMachine(RuleBasedStateMachine):
    """The disk has room for all, so that what a session keeps can only be lost by a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(1_000_000.0)
        self.folder = tempfile.TemporaryDirectory()
        self.storage = KVStorage(LAYOUT, NUM_NAMES, "cpu")
        generator = torch.Generator().manual_seed(1)
        size = (NUM_NAMES, LAYOUT.block_bytes)
        self.bytes = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        self.kept: dict[int, float] = {}
        """What must be found: until when."""
        self.gone: set[int] = set()
        """What must not be found, until it comes down again."""
        self.open()

    def open(self) -> None:
        host = HostTier(self.storage, HOST_SLOTS * LAYOUT.block_bytes)
        self.tiers = Tiers(host, session_ttl_s=TTL_S, clock=self.clock, on_work=lambda: None)
        files: list[FailingFile] = []

        def open_file(path: Path, *, buffer_address: int, buffer_bytes: int) -> FailingFile:
            file = FailingFile(path, buffer_address=buffer_address, buffer_bytes=buffer_bytes)
            files.append(file)
            return file

        self.disk = DiskTier(
            TierFolder(Path(self.folder.name), LAYOUT.layout_digest),
            host,
            num_bytes=NUM_NAMES * SLOT_BYTES,
            block_bytes=LAYOUT.block_bytes,
            layout_digest=LAYOUT.layout_digest,
            open_file=open_file,
        )
        self.tiers.open_disk(self.disk)
        (self.file,) = files

    def on_device(self, numbers: list[int]) -> None:
        for number in numbers:
            self.storage.block(number).copy_(self.bytes[number])
        self.gone -= set(numbers)

    @rule(numbers=NUMBERS)
    def evict(self, numbers: list[int]) -> None:
        self.on_device(numbers)
        self.tiers.evicted([(number, name(number)) for number in numbers])

    @rule(numbers=NUMBERS)
    def end_turn(self, numbers: list[int]) -> None:
        """As a worker does it: written before the next ones may take their place."""
        self.on_device(numbers)
        self.tiers.keep([(number, name(number)) for number in numbers])
        until = self.clock.now() + TTL_S
        if self.write():
            self.kept |= dict.fromkeys(numbers, until)
        else:
            for number in numbers:
                self.kept.pop(number, None)

    @rule()
    def write_what_is_due(self) -> None:
        self.write()

    def write(self) -> bool:
        """Whether all that is due is on disk."""
        if self.file.is_full:
            with contextlib.suppress(TransferError):
                self.tiers.write_some()
            return False
        self.clock.advance(31.0)  # whatever failed before may be tried again
        self.drop_expired()
        while self.tiers.write_some():
            pass
        return True

    @rule(is_full=st.booleans())
    def disk_fills_or_empties(self, is_full: bool) -> None:
        self.file.is_full = is_full

    @rule(numbers=NUMBERS)
    def promote(self, numbers: list[int]) -> None:
        names = [name(number) for number in numbers]
        is_here = all(map(self.tiers.has, names))
        for number in numbers:
            self.storage.block(number).zero_()
        found = self.tiers.find(names)
        is_good = self.tiers.load(found, dict(zip(names, numbers, strict=True)))
        assert is_good == is_here
        if is_good:
            for number in numbers:
                assert torch.equal(self.storage.block(number), self.bytes[number])

    @rule(numbers=NUMBERS)
    def give_up_a_promotion(self, numbers: list[int]) -> None:
        self.tiers.release(self.tiers.find(map(name, numbers)))

    @rule(numbers=NUMBERS)
    def forget(self, numbers: list[int]) -> None:
        self.tiers.forgotten([name(number) for number in numbers])
        self.gone |= set(numbers)
        for number in numbers:
            self.kept.pop(number, None)

    @rule(seconds=st.sampled_from([1.0, 20.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.drop_expired()

    def drop_expired(self) -> None:
        self.tiers.expire()
        now = self.clock.now()
        self.kept = {number: until for number, until in self.kept.items() if until > now}

    @rule()
    def another_worker_comes(self) -> None:
        """What was not on disk is lost; what was forgotten must not be found again."""
        if self.write():
            self.disk.close()
            self.open()

    @invariant()
    def nothing_is_lost_or_found_wrongly(self) -> None:
        self.tiers.check_integrity()
        for number in self.kept:
            assert self.tiers.has(name(number)), f"block {number} is lost, and a session keeps it"
        for number in self.gone:
            assert not self.tiers.has(name(number)), f"block {number} was forgotten"

    def teardown(self) -> None:
        self.disk.close()
        self.folder.cleanup()


TestTiers = TiersMachine.TestCase
TestTiers.settings = settings(max_examples=40, deadline=None)
