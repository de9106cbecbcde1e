"""A real engine with tiers: what comes back when there is room, when there is none, and when a
part of it is torn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pdray.core.clock import ManualClock
from pdray.core.errors import TransferError
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel
from pdray.kvcache.tiers.base import TierConfig
from pdray.kvcache.tiers.slot_header import HEADER_BYTES
from pdray.worker.tiering import EngineTiers
from tests.engine_driver import (
    engine_config,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.tiny_model import NUM_TOKENS

NUM_BLOCKS = 16
TTL_S = 60.0


class Scene:
    def __init__(self, loaded: LoadedModel, clock: ManualClock, folder: Path) -> None:
        probe = Engine(loaded, engine_config())
        block_bytes = probe.layout.block_bytes
        config = engine_config(kv_cache_bytes=NUM_BLOCKS * block_bytes)
        self.engine = Engine(loaded, config)
        self.folder = folder
        self.promoted: list[int] = []
        self.tiering = EngineTiers(
            TierConfig(
                host_bytes=64 * block_bytes,
                disk_bytes=1 << 20,
                disk_path=folder,
                session_ttl_s=TTL_S,
            ),
            self.engine,
            clock=clock,
            on_promoted=lambda num_blocks, _seconds: self.promoted.append(num_blocks),
        )
        self.tiering.start()

    def compute(self, prompt: list[int], session_id: str | None = None) -> tuple[bytes, ...]:
        """Its hashes; its blocks are given back when it returns, and copied where they go."""
        request = request_of(prompt, sampling_params(max_tokens=2), session_id=session_id)
        sequence = sequence_of(request)
        self.engine.add(sequence)
        run_until_idle(self.engine)
        self.tiering.settle()
        return tuple(sequence.prefix_hashes)

    def take_all(self) -> list[int]:
        """Evicts what is cached."""
        block_ids = self.engine.pool.allocate(self.engine.pool.num_available_blocks)
        assert block_ids is not None
        return block_ids

    def evict(self) -> None:
        self.engine.pool.release(self.take_all())

    def count(self, hashes: tuple[bytes, ...]) -> int:
        return self.engine.shared_prefixes.count_tokens(hashes)


@pytest.fixture
def scene(loaded: LoadedModel, manual_clock: ManualClock, tmp_path: Path) -> Iterator[Scene]:
    manual_clock.advance(1000.0)
    scene = Scene(loaded, manual_clock, tmp_path)
    yield scene
    scene.tiering.stop()
    scene.tiering.check_integrity()
    scene.engine.pool.check_integrity()
    assert scene.engine.num_unaccounted_blocks == 0


def prompt(seed: int = 0, length: int = 100) -> list[int]:
    return random_prompts([length], vocab_size=NUM_TOKENS, seed=seed)[0]


async def test_what_was_evicted_comes_back(scene: Scene) -> None:
    hashes = scene.compute(prompt())
    assert not scene.tiering.has_more(hashes)
    scene.evict()
    assert scene.count(hashes) == 0
    assert scene.tiering.has_more(hashes)
    assert await scene.tiering.promote(hashes)
    assert scene.count(hashes) == 96
    assert scene.promoted == [6]
    assert not scene.tiering.has_more(hashes)


async def test_without_room_nothing_comes_until_there_is_some(scene: Scene) -> None:
    hashes = scene.compute(prompt())
    held = scene.take_all()
    assert not await scene.tiering.promote(hashes)
    scene.engine.pool.release(held[:5])
    assert not await scene.tiering.promote(hashes)
    assert scene.tiering.has_more(hashes)
    scene.engine.pool.release(held[5:])
    assert await scene.tiering.promote(hashes)
    assert scene.count(hashes) == 96


async def test_only_what_is_missing_comes(scene: Scene) -> None:
    hashes = scene.compute(prompt())
    held = scene.engine.pool.allocate(NUM_BLOCKS - 3)  # the least recently used: a prompt's end
    assert held is not None
    scene.engine.pool.release(held)
    num_here = scene.count(hashes)
    assert 0 < num_here < 96
    assert await scene.tiering.promote(hashes)
    assert scene.count(hashes) == 96
    assert scene.promoted == [(96 - num_here) // 16]


async def test_of_a_torn_prefix_what_comes_before_it_comes_back(
    scene: Scene, loaded: LoadedModel, manual_clock: ManualClock
) -> None:
    hashes = scene.compute(prompt(), session_id="a conversation")
    scene.tiering.stop()
    (file,) = scene.folder.rglob("blocks")
    data = bytearray(file.read_bytes())
    slot_bytes = len(data) // 6
    # Written in the order of the prompt: its fourth block.
    data[3 * slot_bytes + HEADER_BYTES + 7] ^= 1
    file.write_bytes(data)
    scene = Scene(loaded, manual_clock, scene.folder)
    assert await scene.tiering.promote(hashes)
    assert scene.count(hashes) == 48
    assert not scene.tiering.has_more(hashes)
    assert scene.engine.pool.num_held_blocks == 0
    scene.tiering.stop()


async def test_a_session_ends_with_its_time(scene: Scene, manual_clock: ManualClock) -> None:
    hashes = scene.compute(prompt(), session_id="a conversation")
    scene.evict()
    manual_clock.advance(TTL_S - 1)
    scene.tiering.tick()
    assert scene.tiering.has_more(hashes)
    manual_clock.advance(1)
    scene.tiering.tick()
    assert not scene.tiering.has_more(hashes)


async def test_a_worker_that_stops_leaves_no_promotion_hanging(scene: Scene) -> None:
    hashes = scene.compute(prompt())
    scene.evict()
    scene.tiering.stop()
    assert not await scene.tiering.promote(hashes)
    assert scene.engine.pool.num_held_blocks == 0
    with pytest.raises(TransferError, match="thread has ended"):
        scene.tiering.tick()
