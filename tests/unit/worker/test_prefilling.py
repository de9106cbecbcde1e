"""A prompt's way through a real worker, with its frontend and its decode worker played."""

from __future__ import annotations

import asyncio

import pytest

from pdray.core.placement import WorkerAddress
from pdray.core.snapshot import WorkerState
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    Cancel,
    Draining,
    Failed,
    Offer,
    OfferReply,
    Publish,
    Submission,
    Submit,
    Tokens,
    Withdraw,
)
from pdray.worker import offering
from pdray.worker.prefilling import PATIENCE
from tests.local_cluster import request_of
from tests.unit.worker.conftest import LEASE_S, Scene
from tests.worker_peer import Peer, closing, until


async def submit(
    scene: Scene,
    *candidates: WorkerAddress,
    request_id: str = "r",
    num_tokens: int = 40,
    max_tokens: int = 4,
) -> None:
    request = request_of([5] * num_tokens, max_tokens, request_id=request_id)
    submission = Submission(request=request, attempt=1, decode_candidates=candidates)
    link = await scene.frontend.links.get(scene.worker.info().address)
    link.send(Submit(submissions=(submission,)))


def answer(
    link: Connection, offer: Offer, refusal: str | None = None, *, is_final: bool = False
) -> str:
    lease_id = offer.handoff.lease_id
    link.send(OfferReply(lease_id=lease_id, refusal=refusal, is_final=is_final))
    return lease_id


async def hand_off(scene: Scene, link: Connection, lease_id: str) -> None:
    """Reads along until the whole prompt is published, and acknowledges."""
    while True:
        _, publish = await scene.other.receive(Publish)
        assert publish.watermark.lease_id == lease_id
        if publish.watermark.first_token_id is not None:
            break
    link.send(Acknowledge(lease_id=lease_id, failure=None))
    _, tokens = await scene.frontend.receive(Tokens)
    assert tokens.chunks[0].token_ids == (publish.watermark.first_token_id,)
    assert tokens.chunks[0].decode_worker_id == "other"
    await until(scene.is_empty)


async def test_a_refused_prompt_is_offered_again(scene: Scene) -> None:
    await submit(scene, await scene.other.listen())
    for _ in range(3):
        link, offer = await scene.other.receive(Offer)
        answer(link, offer, "full")
    link, offer = await scene.other.receive(Offer)
    await hand_off(scene, link, answer(link, offer))


async def test_the_next_candidate_is_asked_after_a_refusal(scene: Scene) -> None:
    first = Peer("first", layout_digest="any")
    async with closing(first):
        await submit(scene, await first.listen(), await scene.other.listen())
        link, offer = await first.receive(Offer)
        answer(link, offer, "full")
        link, offer = await scene.other.receive(Offer)
        await hand_off(scene, link, answer(link, offer))


async def test_a_prompt_that_nobody_will_ever_take_fails(scene: Scene) -> None:
    await submit(scene, await scene.other.listen())
    link, offer = await scene.other.receive(Offer)
    answer(link, offer, "unlike KV layouts", is_final=True)
    _, failed = await scene.frontend.receive(Failed)
    assert "other: unlike KV layouts" in failed.reason
    assert scene.is_empty()


async def test_a_prompt_whose_decode_worker_cannot_be_reached_fails(scene: Scene) -> None:
    address = await scene.other.listen()
    await scene.other.close()
    await submit(scene, address)
    _, failed = await scene.frontend.receive(Failed)
    assert "no decode worker takes the request (other: no link" in failed.reason


async def test_a_prompt_larger_than_the_kv_memory_fails_and_blocks_nobody(scene: Scene) -> None:
    address = await scene.other.listen()
    await submit(scene, address, request_id="huge", num_tokens=300)
    _, failed = await scene.frontend.receive(Failed)
    assert "300 tokens do not fit; accepted: up to 256" in failed.reason
    await submit(scene, address)
    link, offer = await scene.other.receive(Offer)
    await hand_off(scene, link, answer(link, offer))


async def test_nobody_passes_a_prompt_that_was_refused_too_often(scene: Scene) -> None:
    address = await scene.other.listen()
    for request_id in ("long", "a", "b"):
        await submit(scene, address, request_id=request_id, num_tokens=20)
    asked: list[str] = []
    while asked.count("long") <= PATIENCE + 5:
        link, offer = await scene.other.receive(Offer)
        asked.append(offer.handoff.request.request_id)
        answer(link, offer, "full")
    assert {"a", "b"} < set(asked)
    patient = [i for i, request_id in enumerate(asked) if request_id == "long"][PATIENCE]
    assert set(asked[patient:]) == {"long"}


async def test_a_prompt_cancelled_while_it_is_offered_gives_its_blocks_back(scene: Scene) -> None:
    await submit(scene, await scene.other.listen())
    link, offer = await scene.other.receive(Offer)
    to_worker = await scene.frontend.links.get(scene.worker.info().address)
    to_worker.send(Cancel(attempts=(("r", 1),)))
    await until(lambda: scene.worker.snapshot().num_waiting == 0)
    lease_id = answer(link, offer)
    await scene.other.receive(Withdraw)
    link.send(Acknowledge(lease_id=lease_id, failure="withdrawn"))
    await until(scene.is_empty)


async def test_a_prompt_whose_frontend_is_lost_while_it_is_offered_ends(scene: Scene) -> None:
    await submit(scene, await scene.other.listen())
    link, offer = await scene.other.receive(Offer)
    await scene.frontend.links.close()
    await until(lambda: scene.worker.snapshot().num_waiting == 0)
    lease_id = answer(link, offer)
    await scene.other.receive(Withdraw)
    link.send(Acknowledge(lease_id=lease_id, failure="withdrawn"))
    await until(scene.is_empty)


async def test_a_frontend_that_dials_again_has_given_up_what_came_before(scene: Scene) -> None:
    await submit(scene, await scene.other.listen())
    await scene.other.receive(Offer)
    again = Peer("frontend")
    async with closing(again):
        await again.links.get(scene.worker.info().address)
        await until(lambda: scene.worker.snapshot().num_waiting == 0)


async def test_a_lost_decode_worker_is_not_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "OFFER_TIMEOUT_S", 1000.0)
    first = Peer("first", layout_digest="any")
    async with closing(first):
        await submit(scene, await first.listen(), await scene.other.listen())
        link, _ = await first.receive(Offer)
        await link.close()
        link, offer = await scene.other.receive(Offer)
        await hand_off(scene, link, answer(link, offer))


async def test_an_answer_after_the_timeout_is_not_taken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "OFFER_TIMEOUT_S", 0.01)
    await submit(scene, await scene.other.listen())
    link, late = await scene.other.receive(Offer)
    _, withdraw = await scene.other.receive(Withdraw)
    assert withdraw.lease_id == late.handoff.lease_id
    monkeypatch.setattr(offering, "OFFER_TIMEOUT_S", 1000.0)
    answer(link, late)
    while True:  # offers that were made with the short timeout are withdrawn, too
        link, message = await scene.other.receive(Offer | Withdraw)  # type: ignore[arg-type]
        if isinstance(message, Offer):
            lease_id = answer(link, message)
            link, message = await scene.other.receive(Publish | Withdraw)  # type: ignore[arg-type]
            if isinstance(message, Publish):
                break
    assert lease_id != late.handoff.lease_id
    assert message.watermark.lease_id == lease_id


async def test_a_yes_that_comes_when_the_lease_is_over_is_withdrawn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "OFFER_TIMEOUT_S", 1000.0)
    await submit(scene, await scene.other.listen())
    link, offer = await scene.other.receive(Offer)
    scene.clock.advance(LEASE_S)
    await until(lambda: len(scene.worker._lending._table) == 0)
    lease_id = answer(link, offer)
    _, withdraw = await scene.other.receive(Withdraw)
    assert withdraw.lease_id == lease_id
    link, offer = await scene.other.receive(Offer)
    await hand_off(scene, link, answer(link, offer))


async def test_a_prompt_whose_decode_worker_is_the_same_is_decoded_here(scene: Scene) -> None:
    await submit(scene, scene.worker.info().address, max_tokens=6)
    indices: list[int] = []
    while len(indices) < 6:
        _, tokens = await scene.frontend.receive(Tokens)
        indices += [chunk.index for chunk in tokens.chunks]
    assert indices == list(range(6))
    assert tokens.chunks[-1].finish_reason is not None
    await until(scene.is_empty)
    await scene.worker.drain()


async def test_a_prompt_decoded_here_is_cancelled_like_any_other(scene: Scene) -> None:
    await submit(scene, scene.worker.info().address, max_tokens=200)
    link, _ = await scene.frontend.receive(Tokens)
    link.send(Cancel(attempts=(("r", 1),)))
    await until(scene.is_empty)


async def test_a_worker_that_drains_gives_back_what_it_has_not_begun(scene: Scene) -> None:
    address = await scene.other.listen()
    await submit(scene, address, request_id="begun")
    link, offer = await scene.other.receive(Offer)
    scene.worker._prefilling._lookahead_tokens = 0
    await submit(scene, address, request_id="waits")
    await until(lambda: len(scene.worker._prefilling._waiting) == 1)
    draining = asyncio.create_task(scene.worker.drain(gives_back=True))
    await scene.frontend.receive(Draining)
    _, failed = await scene.frontend.receive(Failed)
    assert (failed.request_id, failed.is_given_back) == ("waits", True)
    await hand_off(scene, link, answer(link, offer))
    assert await draining
    await submit(scene, address, request_id="late")
    _, failed = await scene.frontend.receive(Failed)
    assert (failed.request_id, failed.is_given_back) == ("late", True)


async def test_a_worker_that_drains_for_too_long_says_so(scene: Scene) -> None:
    await submit(scene, scene.worker.info().address, max_tokens=400)
    await scene.frontend.receive(Tokens)
    draining = asyncio.create_task(scene.worker.drain())
    await until(lambda: scene.worker.state is WorkerState.DRAINING)
    draining_until = asyncio.create_task(scene.worker.drain(5.0))
    await asyncio.sleep(0)
    scene.clock.advance(5.0)
    assert not await draining_until
    assert not await draining
