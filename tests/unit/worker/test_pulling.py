"""A handoff's way through a real worker, with its prefill worker and its frontend played."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pdray.core.handoff import BlockRun, Handoff, Watermark
from pdray.core.request import WorkerId
from pdray.core.snapshot import WorkerState
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    Cancel,
    Failed,
    Offer,
    OfferReply,
    PrefillLost,
    Publish,
    Renew,
    Renewed,
    Submission,
    Submit,
    Tokens,
    Withdraw,
)
from pdray.transfer.reading import READER_SHARE, RENEWALS
from pdray.transfer.transfer_thread import TransferThread
from tests.local_cluster import request_of
from tests.unit.worker.conftest import LEASE_S, Scene
from tests.worker_peer import Peer, closing, until

FIRST_TOKEN = 7


def handoff(
    lease_id: str = "l", *, request_id: str = "r", num_tokens: int = 40, max_tokens: int = 4
) -> Handoff:
    return Handoff(
        lease_id=lease_id,
        request=request_of([5] * num_tokens, max_tokens, request_id=request_id),
        attempt=1,
        frontend_id="frontend",
        owner_id=WorkerId("other"),
        lease_s=LEASE_S,
    )


async def dial(scene: Scene) -> Connection:
    return await scene.other.links.get(scene.worker.info().address)


async def reply_to(scene: Scene, offered: Handoff) -> OfferReply:
    (await dial(scene)).send(Offer(handoff=offered))
    _, reply = await scene.other.receive(OfferReply)
    assert reply.lease_id == offered.lease_id
    return reply


async def reserve(scene: Scene, offered: Handoff) -> Connection:
    assert (await reply_to(scene, offered)).refusal is None
    assert not scene.is_empty()
    return await dial(scene)


def watermark(num_blocks: int, *, is_last: bool, lease_id: str = "l") -> Watermark:
    """Of a prompt of 40 tokens, 3 blocks, which lie in the owner's blocks 1 to 3."""
    run = BlockRun(group_id=0, first_block=0, block_ids=(1, 2, 3)[:num_blocks])
    return Watermark(
        lease_id=lease_id,
        ready_tokens=40 if is_last else num_blocks * 16,
        runs=(run,),
        first_token_id=FIRST_TOKEN if is_last else None,
    )


def cancel(link: Connection) -> None:
    link.send(Cancel(attempts=(("r", 1),)))


async def test_doubled_and_late_watermarks_are_read_once(scene: Scene) -> None:
    link = await reserve(scene, handoff())
    marks = [watermark(n, is_last=n == 3) for n in (1, 1, 3, 2, 3)]
    for mark in marks:
        link.send(Publish(watermark=mark))
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge == Acknowledge(lease_id="l", failure=None)
    indices: list[int] = []
    while len(indices) < 3:
        _, tokens = await scene.frontend.receive(Tokens)
        indices += [chunk.index for chunk in tokens.chunks]
    assert indices == [1, 2, 3]
    await until(scene.is_empty)
    text = scene.worker.metrics_text().decode()
    (line,) = (x for x in text.splitlines() if x.startswith("pdray_kv_transfer_blocks_total{"))
    assert float(line.split()[-1]) == 3


async def test_what_reads_cost_is_known_by_the_owners_node_group(scene: Scene) -> None:
    assert scene.worker.snapshot().reads == ()
    link = await reserve(scene, handoff())
    link.send(Publish(watermark=watermark(1, is_last=False)))
    link.send(Publish(watermark=watermark(3, is_last=True)))
    await scene.other.receive(Acknowledge)
    (cost,) = scene.worker.snapshot().reads
    assert (cost.source, cost.num_reads) == ("elsewhere", 2)
    assert 0.0 < cost.read_s(scene.worker.info().kv_bytes(16)) < 10.0
    await until(scene.is_empty)


async def test_earlier_attempts_tokens_are_counted_in_the_index(scene: Scene) -> None:
    request = replace(request_of([5] * 38, 5), output_token_ids=(8, 9))
    link = await reserve(scene, replace(handoff(), request=request))
    link.send(Publish(watermark=watermark(3, is_last=True)))
    indices: list[int] = []
    while len(indices) < 2:
        _, tokens = await scene.frontend.receive(Tokens)
        indices += [chunk.index for chunk in tokens.chunks]
    assert indices == [3, 4]


async def test_a_pull_whose_owner_does_not_answer_is_given_up(scene: Scene) -> None:
    await reserve(scene, handoff())
    scene.clock.advance(LEASE_S / RENEWALS)
    _, renew = await scene.other.receive(Renew)
    assert renew == Renew(lease_ids=("l",), asked_at=scene.clock.now())
    scene.clock.advance(LEASE_S * READER_SHARE)
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge.failure == "its owner did not renew the lease in time"
    assert scene.is_empty()


async def test_each_answer_gives_a_pull_more_time_from_when_it_was_asked_for(
    scene: Scene,
) -> None:
    link = await reserve(scene, handoff())
    for _ in range(12):
        scene.clock.advance(LEASE_S / RENEWALS)
        _, renew = await scene.other.receive(Renew)
        scene.clock.advance(1)
        link.send(Renewed(lease_ids=renew.lease_ids, asked_at=renew.asked_at))
    assert (await reply_to(scene, handoff("after"))).is_final  # in order
    link.send(Publish(watermark=watermark(3, is_last=True)))
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge.failure is None


async def test_blocks_whose_lease_was_over_are_not_used(scene: Scene) -> None:
    current, over = scene.epochs.take(), scene.epochs.take()
    assert over is not None
    scene.epochs.end(over)
    for lease_id, epoch in (("l", over), ("m", current)):
        link = await reserve(scene, handoff(lease_id))
        mark = watermark(3, is_last=True, lease_id=lease_id)
        link.send(Publish(watermark=replace(mark, epoch=epoch)))
        _, acknowledge = await scene.other.receive(Acknowledge)
        assert acknowledge.lease_id == lease_id
        if epoch is over:
            assert "was over" in (acknowledge.failure or "")
        else:
            assert acknowledge.failure is None


async def test_an_offer_that_comes_twice_is_taken_once(scene: Scene) -> None:
    link = await reserve(scene, handoff())
    assert (await reply_to(scene, handoff())).refusal is None
    link.send(Publish(watermark=watermark(3, is_last=True)))
    await scene.other.receive(Acknowledge)
    reply = await reply_to(scene, handoff())
    assert (reply.refusal, reply.is_final) == ("the lease is over here", True)
    await until(scene.is_empty)


async def test_what_is_published_after_a_withdrawal_is_not_read(scene: Scene) -> None:
    link = await reserve(scene, handoff())
    for _ in range(2):
        link.send(Withdraw(lease_id="l"))
    link.send(Publish(watermark=watermark(3, is_last=True)))
    failures = [(await scene.other.receive(Acknowledge))[1].failure for _ in range(2)]
    assert failures == ["withdrawn by its owner", "unknown lease"]
    assert scene.is_empty()
    assert (await reply_to(scene, handoff("again"))).refusal is None


async def test_a_cancel_that_overtakes_its_offer_wins(scene: Scene) -> None:
    link = await scene.frontend.links.get(scene.worker.info().address)
    cancel(link)
    link.send(Withdraw(lease_id="no such"))
    await scene.frontend.receive(Acknowledge)
    reply = await reply_to(scene, handoff())
    assert reply.refusal == "the attempt was cancelled"
    assert reply.is_final
    assert scene.is_empty()


async def test_a_cancel_ends_a_pull(scene: Scene) -> None:
    await reserve(scene, handoff())
    cancel(await scene.frontend.links.get(scene.worker.info().address))
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge.failure == "cancelled"
    assert scene.is_empty()


async def test_a_pull_whose_owner_is_lost_fails(scene: Scene) -> None:
    link = await reserve(scene, handoff())
    await link.close()
    _, failed = await scene.frontend.receive(Failed)
    assert "prefill worker other was lost" in failed.reason
    assert scene.is_empty()


async def test_a_pull_whose_frontend_has_lost_the_prefill_worker_fails(scene: Scene) -> None:
    await reserve(scene, handoff())
    to_worker = await scene.frontend.links.get(scene.worker.info().address)
    for _ in range(2):
        to_worker.send(PrefillLost(request_id="r", attempt=1))
        _, failed = await scene.frontend.receive(Failed)
        assert failed.reason == "its prefill worker was lost during the handoff"
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge.failure is not None
    assert scene.is_empty()


async def test_a_sequence_that_has_all_its_blocks_does_without_its_prefill_worker(
    scene: Scene,
) -> None:
    link = await reserve(scene, handoff(max_tokens=100))
    link.send(Publish(watermark=watermark(3, is_last=True)))
    to_worker, _ = await scene.frontend.receive(Tokens)
    to_worker.send(PrefillLost(request_id="r", attempt=1))
    is_over = False
    while not is_over:
        _, tokens = await scene.frontend.receive(Tokens)
        is_over = tokens.chunks[-1].finish_reason is not None
    await until(scene.is_empty)


async def test_a_pull_whose_frontend_is_lost_ends(scene: Scene) -> None:
    await reserve(scene, handoff())
    await scene.frontend.links.close()
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge.failure == "cancelled"
    assert scene.is_empty()


async def test_memory_that_cannot_be_read_fails_the_request(scene: Scene) -> None:
    stranger = Peer(
        "stranger",
        layout_digest=scene.worker.engine.layout.content_digest,
        description=b"no description",
    )
    async with closing(stranger):
        link = await stranger.links.get(scene.worker.info().address)
        link.send(Offer(handoff=handoff()))
        await stranger.receive(OfferReply)
        link.send(Publish(watermark=watermark(3, is_last=True)))
        _, acknowledge = await stranger.receive(Acknowledge)
        assert "unknown peer 'stranger'" in (acknowledge.failure or "")
        assert scene.is_empty()


async def test_a_full_worker_may_be_asked_again(scene: Scene) -> None:
    for number in range(4):
        await reserve(scene, handoff(f"l{number}", request_id=f"r{number}"))
    reply = await reply_to(scene, handoff())
    assert reply == OfferReply(lease_id="l", refusal="batch of 4 is full", is_final=False)


async def test_too_few_free_blocks_may_be_more_later(scene: Scene) -> None:
    await reserve(scene, handoff("first", request_id="first", num_tokens=200))
    reply = await reply_to(scene, handoff(num_tokens=100))
    assert reply.refusal == "not enough free KV blocks"
    assert not reply.is_final


async def test_what_could_never_fit_is_refused_for_good(scene: Scene) -> None:
    reply = await reply_to(scene, handoff(num_tokens=253))
    assert reply.refusal == "253 tokens and 4 to grow; at most 256"
    assert reply.is_final


async def test_another_layout_is_refused_for_good_with_both_in_the_message(scene: Scene) -> None:
    unlike = Peer("unlike", layout_digest="another layout", description=b"")
    async with closing(unlike):
        link = await unlike.links.get(scene.worker.info().address)
        link.send(Offer(handoff=handoff()))
        _, reply = await unlike.receive(OfferReply)
    assert reply.is_final
    assert "another layout" in (reply.refusal or "")
    assert scene.worker.engine.layout.describe() in (reply.refusal or "")


async def test_a_draining_worker_takes_the_handoffs_that_were_placed_before(scene: Scene) -> None:
    await reserve(scene, handoff("one", request_id="one"))
    draining = asyncio.create_task(scene.worker.drain())
    await until(lambda: scene.worker.state is WorkerState.DRAINING)
    link = await reserve(scene, handoff())
    for lease_id in ("one", "l"):
        link.send(Publish(watermark=watermark(3, is_last=True, lease_id=lease_id)))
    await draining
    assert scene.is_empty()


async def test_a_worker_whose_transfer_thread_ended_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.may_crash = True
    monkeypatch.setattr(TransferThread, "is_running", False)
    assert "no KV moves" in str(await scene.worker.crashed())


async def find_two_blocks(scene: Scene) -> None:
    """The first two of the prompt of 40 tokens are in the worker's prefix cache."""
    submission = Submission(request=request_of([5] * 35, 1), attempt=1, decode_candidates=())
    link = await scene.frontend.links.get(scene.worker.info().address)
    link.send(Submit(submissions=(submission,)))
    await scene.frontend.receive(Tokens)
    await until(scene.is_empty)
    assert scene.worker.engine.pool.num_cached_blocks == 2


def metric(scene: Scene, name: str) -> float:
    lines = scene.worker.metrics_text().decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}{{"))
    return float(line.split()[-1])


async def test_blocks_that_are_here_already_are_not_read(scene: Scene) -> None:
    await find_two_blocks(scene)
    link = await reserve(scene, handoff(request_id="again"))
    for num_blocks in (1, 2, 3):
        link.send(Publish(watermark=watermark(num_blocks, is_last=num_blocks == 3)))
    _, acknowledge = await scene.other.receive(Acknowledge)
    assert acknowledge.failure is None
    await until(scene.is_empty)
    assert metric(scene, "pdray_kv_transfer_blocks_total") == 1
    assert metric(scene, "pdray_kv_transfer_found_blocks_total") == 2
    block_bytes = scene.worker.engine.layout.block_bytes
    assert metric(scene, "pdray_kv_transfer_found_bytes_total") == 2 * block_bytes


@pytest.mark.parametrize("end", ["cancel", "loss", "withdrawal"])
async def test_blocks_that_are_here_already_stay_when_the_pull_fails(
    scene: Scene, end: str
) -> None:
    await find_two_blocks(scene)
    link = await reserve(scene, handoff())
    assert scene.worker.engine.pool.num_cached_blocks == 0
    match end:
        case "cancel":
            cancel(await scene.frontend.links.get(scene.worker.info().address))
        case "loss":
            await link.close()
        case "withdrawal":
            link.send(Withdraw(lease_id="l"))
    await until(scene.is_empty)
    assert scene.worker.engine.pool.num_cached_blocks == 2
