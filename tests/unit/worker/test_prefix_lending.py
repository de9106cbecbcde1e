"""What a real worker lends of its prefix cache, to a reader that the test plays."""

from __future__ import annotations

import pytest

from pdray.link.connection import Connection
from pdray.link.messages import Acknowledge, Borrow, Lent, Tokens
from tests.engine_driver import sequence_of
from tests.unit.worker.conftest import LEASE_S, QUARANTINE_S, Scene
from tests.unit.worker.test_borrowing import NUM_BLOCKS, prompt, submit
from tests.worker_peer import Peer, closing, until


@pytest.fixture
async def hashes(scene: Scene) -> tuple[bytes, ...]:
    """Of the prompt that the worker has computed."""
    await submit(scene, prompt(), None)
    await scene.frontend.receive(Tokens)
    await until(scene.is_empty)
    sequence = sequence_of(prompt())
    scene.worker.engine.prefix_cache.hash(sequence)
    return tuple(sequence.prefix_hashes)


async def borrow(
    scene: Scene, reader: Peer, hashes: tuple[bytes, ...], block_size: int = 16
) -> tuple[Connection, Lent]:
    link = await reader.links.get(scene.worker.info().address)
    link.send(Borrow(number=7, prefix_hashes=hashes, block_size=block_size))
    _, answer = await reader.receive(Lent)
    assert answer.number == 7
    assert answer.lease_s == LEASE_S
    return link, answer


async def test_what_it_has_is_held_until_the_reader_is_done(
    scene: Scene, hashes: tuple[bytes, ...]
) -> None:
    link, answer = await borrow(scene, scene.other, (*hashes, b"what comes next."))
    assert answer.watermark is not None
    assert answer.watermark.ready_tokens == NUM_BLOCKS * 16
    (run,) = answer.watermark.runs
    assert len(run.block_ids) == scene.worker.engine.pool.num_held_blocks == NUM_BLOCKS
    link.send(Acknowledge(lease_id=answer.watermark.lease_id, failure=None))
    await until(scene.is_empty)


async def test_a_prefix_that_it_does_not_have_is_not_lent(
    scene: Scene, hashes: tuple[bytes, ...]
) -> None:
    _, answer = await borrow(scene, scene.other, (b"another",) * len(hashes))
    assert answer.watermark is None
    assert scene.is_empty()


async def test_whole_blocks_of_the_reader_are_lent(scene: Scene, hashes: tuple[bytes, ...]) -> None:
    _, answer = await borrow(scene, scene.other, hashes, block_size=64)
    assert answer.watermark is not None
    assert answer.watermark.ready_tokens == 64


async def test_blocks_of_another_layout_are_not_lent(
    scene: Scene, hashes: tuple[bytes, ...]
) -> None:
    unlike = Peer("unlike", layout_digest="another layout")
    async with closing(unlike):
        _, answer = await borrow(scene, unlike, hashes)
    assert answer.watermark is None
    assert scene.is_empty()


async def test_a_lost_readers_blocks_wait_for_its_last_read(
    scene: Scene, hashes: tuple[bytes, ...]
) -> None:
    link, _ = await borrow(scene, scene.other, hashes)
    await link.close()
    await until(lambda: scene.num_quarantined == NUM_BLOCKS)
    # They were only read: they may be found all the same.
    await submit(scene, prompt("next"), None)
    _, tokens = await scene.frontend.receive(Tokens)
    assert tokens.chunks[0].num_cached_tokens == NUM_BLOCKS * 16
    scene.clock.advance(LEASE_S + QUARANTINE_S)
    await until(scene.is_empty)
