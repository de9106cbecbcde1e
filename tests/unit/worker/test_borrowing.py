"""A prompt whose KV another worker should have, on a real worker, with that other one played."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdray.core.handoff import BlockRun, Watermark
from pdray.core.placement import PrefixSource, WorkerAddress
from pdray.core.request import Request
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    Borrow,
    Cancel,
    Lent,
    Submission,
    Submit,
    Tokens,
)
from pdray.transfer.reading import READER_SHARE
from pdray.worker import borrowing, prefilling
from tests.local_cluster import request_of
from tests.unit.worker.conftest import LEASE_S, Scene
from tests.worker_peer import Peer, closing, until

NUM_TOKENS = 120
NUM_BLOCKS = 7
"""Whole ones."""
MOMENT_S = 0.05


def prompt(request_id: str = "r") -> Request:
    return request_of([5] * NUM_TOKENS, 1, request_id=request_id)


async def submit(
    scene: Scene, request: Request, source: WorkerAddress | None, num_tokens: int = NUM_TOKENS
) -> None:
    prefix_source = None
    if source is not None:
        prefix_source = PrefixSource(address=source, num_tokens=num_tokens)
    submission = Submission(
        request=request, attempt=1, decode_candidates=(), prefix_source=prefix_source
    )
    link = await scene.frontend.links.get(scene.worker.info().address)
    link.send(Submit(submissions=(submission,)))


async def asked(source: Peer) -> tuple[Connection, Borrow]:
    link, borrow = await source.receive(Borrow)
    assert len(borrow.prefix_hashes) == NUM_BLOCKS
    assert borrow.block_size == 16
    return link, borrow


def lent(borrow: Borrow, num_blocks: int = NUM_BLOCKS, num_tokens: int | None = None) -> Lent:
    """The source's own blocks 3, 4, ..."""
    run = BlockRun(group_id=0, first_block=0, block_ids=tuple(range(3, 3 + num_blocks)))
    watermark = Watermark(
        lease_id="l",
        ready_tokens=num_blocks * 16 if num_tokens is None else num_tokens,
        runs=(run,),
        first_token_id=None,
    )
    return Lent(number=borrow.number, lease_s=LEASE_S, watermark=watermark)


async def acknowledged(source: Peer) -> str | None:
    _, acknowledge = await source.receive(Acknowledge)
    assert acknowledge.lease_id == "l"
    return acknowledge.failure


async def num_cached(scene: Scene, request_id: str = "r") -> int | None:
    """Of the prompt, by the chunk with its first token."""
    _, tokens = await scene.frontend.receive(Tokens)
    (chunk,) = tokens.chunks
    assert chunk.request_id == request_id
    return chunk.num_cached_tokens


def borrows(scene: Scene, outcome: str) -> float:
    text = scene.worker.metrics_text().decode()
    start, label = "pdray_prefix_borrows_total{", f'outcome="{outcome}"'
    (line,) = (x for x in text.splitlines() if x.startswith(start) and label in x)
    return float(line.split()[-1])


@pytest.mark.parametrize("num_blocks", [NUM_BLOCKS, 5])
async def test_what_the_source_has_is_not_computed(scene: Scene, num_blocks: int) -> None:
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    link.send(lent(borrow, num_blocks))
    assert await acknowledged(scene.other) is None
    assert await num_cached(scene) == num_blocks * 16
    assert borrows(scene, "filled") == 1
    await until(scene.is_empty)


async def test_only_what_is_missing_here_is_read(scene: Scene) -> None:
    await submit(scene, request_of([5] * 40, 1, request_id="first"), None)
    await num_cached(scene, "first")
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    link.send(lent(borrow))
    assert await acknowledged(scene.other) is None
    assert await num_cached(scene) == NUM_BLOCKS * 16
    text = scene.worker.metrics_text().decode()
    (line,) = (x for x in text.splitlines() if x.startswith("pdray_kv_transfer_blocks_total{"))
    assert float(line.split()[-1]) == NUM_BLOCKS - 2
    (line,) = (x for x in text.splitlines() if x.startswith("pdray_prefix_borrowed_tokens_total{"))
    assert float(line.split()[-1]) == (NUM_BLOCKS - 2) * 16


async def test_without_anything_to_gain_nobody_is_asked(scene: Scene) -> None:
    await submit(scene, prompt(), await scene.other.listen(), num_tokens=16)
    assert await num_cached(scene) == 0
    await submit(scene, prompt("again"), await scene.other.listen())
    assert await num_cached(scene, "again") == NUM_BLOCKS * 16
    scored = replace(prompt("scored").sampling, prompt_logprobs=1)
    request = replace(prompt("scored"), sampling=scored, cache_salt="found nowhere")
    await submit(scene, request, await scene.other.listen())
    assert await num_cached(scene, "scored") == 0
    assert scene.other._received.empty()


async def test_a_source_that_has_it_no_more_costs_nothing(scene: Scene) -> None:
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    link.send(Lent(number=borrow.number, lease_s=LEASE_S, watermark=None))
    assert await num_cached(scene) == 0
    assert borrows(scene, "vain") == 1


async def test_a_source_that_cannot_be_reached_costs_nothing(scene: Scene) -> None:
    gone = Peer("gone", layout_digest="same")
    address = await gone.listen()
    await gone.close()
    await submit(scene, prompt(), address)
    assert await num_cached(scene) == 0


async def test_a_source_that_is_lost_costs_nothing(scene: Scene) -> None:
    await submit(scene, prompt(), await scene.other.listen())
    link, _ = await asked(scene.other)
    await link.close()
    assert await num_cached(scene) == 0


async def test_an_answer_that_comes_too_late_is_given_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "ANSWER_TIMEOUT_S", MOMENT_S)
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    assert await num_cached(scene) == 0
    link.send(lent(borrow))
    assert await acknowledged(scene.other) == "its answer came too late"
    await until(scene.is_empty)


async def test_a_prompt_is_held_up_for_a_bounded_time_and_holds_up_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefilling, "FETCH_S", MOMENT_S)
    monkeypatch.setattr(borrowing, "ANSWER_TIMEOUT_S", 20.0)
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    await submit(scene, request_of([6] * 20, 1, request_id="other"), None)
    assert await num_cached(scene, "other") == 0
    assert await num_cached(scene) == 0
    link.send(lent(borrow))
    failure = await acknowledged(scene.other)
    assert failure == "it is here by now, or there is no room for it"
    await until(scene.is_empty)


async def test_blocks_of_a_lease_that_has_run_out_are_not_used(scene: Scene) -> None:
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    scene.clock.advance(LEASE_S * READER_SHARE)
    link.send(lent(borrow))
    assert await acknowledged(scene.other) == "it came too late"
    assert await num_cached(scene) == 0
    await until(scene.is_empty)


async def test_a_source_that_lends_too_little_is_not_read(scene: Scene) -> None:
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    link.send(lent(borrow, 5, num_tokens=112))
    assert await acknowledged(scene.other) == "it has lent too little"
    assert await num_cached(scene) == 0
    await until(scene.is_empty)


async def test_a_source_whose_memory_cannot_be_read_costs_nothing(scene: Scene) -> None:
    stranger = Peer("stranger", layout_digest="same", description=b"no description")
    async with closing(stranger):
        await submit(scene, prompt(), await stranger.listen())
        link, borrow = await asked(stranger)
        link.send(lent(borrow))
        assert "unknown peer 'stranger'" in (await acknowledged(stranger) or "")
        assert await num_cached(scene) == 0


async def test_what_a_cancelled_prompt_has_borrowed_stays_for_others(scene: Scene) -> None:
    await submit(scene, prompt(), await scene.other.listen())
    link, borrow = await asked(scene.other)
    to_worker = await scene.frontend.links.get(scene.worker.info().address)
    to_worker.send(Cancel(attempts=(("r", 1),)))
    await until(lambda: scene.worker._prefilling.num_active == 0)
    link.send(lent(borrow))
    assert await acknowledged(scene.other) is None
    await until(scene.is_empty)
    await submit(scene, prompt("next"), None)
    assert await num_cached(scene, "next") == NUM_BLOCKS * 16


async def test_no_more_is_borrowed_ahead_than_fits_together(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker holds 256 tokens. The third prompt runs at once: nobody else can."""
    monkeypatch.setattr(borrowing, "ANSWER_TIMEOUT_S", 20.0)
    monkeypatch.setattr(prefilling, "FETCH_S", 20.0)
    source = await scene.other.listen()
    for number in range(3):
        request = request_of([number + 5] * NUM_TOKENS, 1, request_id=f"{number}")
        await submit(scene, request, source)
    link, first = await asked(scene.other)
    _, second = await asked(scene.other)
    assert await num_cached(scene, "2") == 0
    assert scene.other._received.empty()
    link.send(lent(first))
    assert await acknowledged(scene.other) is None
    assert await num_cached(scene, "0") == NUM_BLOCKS * 16
    link.send(lent(second))
    assert await acknowledged(scene.other) is None
    assert await num_cached(scene, "1") == NUM_BLOCKS * 16
