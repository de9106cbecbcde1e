"""What a real worker does with blocks that a silent, lost or doubtful reader may be reading."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pdray.core.request import WorkerId
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    Cancel,
    DecodeLost,
    Failed,
    GiveUp,
    GoesOn,
    HandedOff,
    Offer,
    Publish,
    Renew,
    Renewed,
    Tokens,
    Withdraw,
)
from pdray.worker.prefilling import SEEK_S
from tests.unit.worker.conftest import LEASE_S, QUARANTINE_S, Scene
from tests.unit.worker.test_prefilling import answer, submit
from tests.worker_peer import Peer, closing, until


async def lend(scene: Scene, num_tokens: int = 60) -> tuple[Connection, str]:
    """A whole prompt, published; its link and its lease."""
    await submit(scene, await scene.other.listen(), num_tokens=num_tokens)
    link, offer = await scene.other.receive(Offer)
    lease_id = answer(link, offer)
    await scene.frontend.receive(Tokens)
    return link, lease_id


async def test_blocks_of_a_silent_reader_are_quarantined_and_then_free(scene: Scene) -> None:
    await lend(scene)
    scene.clock.advance(LEASE_S)
    _, failed = await scene.frontend.receive(Failed)
    assert "lease ran out" in failed.reason
    assert scene.num_quarantined == 4
    scene.clock.advance(QUARANTINE_S)
    await until(scene.is_empty)


async def test_blocks_of_a_lost_reader_are_quarantined_until_its_reads_are_surely_over(
    scene: Scene,
) -> None:
    link, _ = await lend(scene)
    await link.close()
    _, failed = await scene.frontend.receive(Failed)
    assert "decode worker other was lost" in failed.reason
    assert scene.num_quarantined == 4
    scene.clock.advance(LEASE_S + QUARANTINE_S)
    await until(scene.is_empty)


async def test_a_prompt_that_waits_for_blocks_gets_those_out_of_quarantine(scene: Scene) -> None:
    await lend(scene, num_tokens=250)
    await submit(scene, await scene.other.listen(), request_id="next")
    scene.clock.advance(LEASE_S)
    await scene.frontend.receive(Failed)
    assert scene.num_quarantined == 16
    scene.clock.advance(QUARANTINE_S)
    while True:
        _, message = await scene.other.receive(Offer | Publish)  # type: ignore[arg-type]
        if isinstance(message, Offer):
            break
    assert message.handoff.request.request_id == "next"


async def test_doubled_and_unknown_acknowledgements_do_no_harm(scene: Scene) -> None:
    link, lease_id = await lend(scene)
    for each in ("no such lease", lease_id, lease_id):
        link.send(Acknowledge(lease_id=each, failure=None))
    await until(scene.is_empty)
    await submit(scene, await scene.other.listen(), request_id="next", max_tokens=1)
    _, tokens = await scene.frontend.receive(Tokens)
    assert tokens.chunks[0].request_id == "next"


async def test_a_reader_that_gives_up_fails_the_request(scene: Scene) -> None:
    link, lease_id = await lend(scene)
    link.send(Acknowledge(lease_id=lease_id, failure="a read failed"))
    _, failed = await scene.frontend.receive(Failed)
    assert failed.reason == "no decode worker takes the request (other: a read failed)"
    await until(scene.is_empty)


async def lend_to_first(scene: Scene, first: Peer, num_tokens: int = 60) -> tuple[Connection, str]:
    """As ``lend``, to ``first``, with the scene's other worker as the second candidate."""
    await submit(scene, await first.listen(), await scene.other.listen(), num_tokens=num_tokens)
    link, offer = await first.receive(Offer)
    lease_id = answer(link, offer)
    _, tokens = await scene.frontend.receive(Tokens)
    assert tokens.chunks[0].decode_worker_id == "first"
    return link, lease_id


async def read_by_second(scene: Scene) -> None:
    """The same prompt is offered to the second candidate, whole, and computed no second time."""
    link, offer = await scene.other.receive(Offer)
    lease_id = answer(link, offer)
    _, publish = await scene.other.receive(Publish)
    assert publish.watermark.first_token_id is not None
    assert publish.watermark.ready_tokens == 60
    _, goes_on = await scene.frontend.receive(GoesOn)
    assert goes_on == GoesOn(request_id="r", attempt=1, worker_id=WorkerId("other"))
    link.send(Acknowledge(lease_id=lease_id, failure=None))


@pytest.fixture
async def first() -> AsyncIterator[Peer]:
    peer = Peer("first", layout_digest="any")
    async with closing(peer):
        yield peer


async def test_a_computed_prompt_goes_to_the_next_when_its_reader_is_lost(
    scene: Scene, first: Peer
) -> None:
    link, _ = await lend_to_first(scene, first)
    await link.close()
    await read_by_second(scene)
    await until(lambda: scene.num_quarantined == 4)
    assert scene.worker.engine.pool.num_held_blocks == 0
    scene.clock.advance(LEASE_S + QUARANTINE_S)
    await until(scene.is_empty)


async def test_blocks_stay_for_the_second_reader_when_the_first_ones_quarantine_ends(
    scene: Scene, first: Peer
) -> None:
    link, _ = await lend_to_first(scene, first)
    await link.close()
    link, offer = await scene.other.receive(Offer)
    scene.clock.advance(LEASE_S - 1)
    lease_id = answer(link, offer)
    await scene.other.receive(Publish)
    scene.clock.advance(QUARANTINE_S + 1)
    await until(lambda: len(scene.worker._lending._table) == 1)
    assert scene.worker.engine.pool.num_held_blocks == 4
    link.send(Acknowledge(lease_id=lease_id, failure=None))
    await until(scene.is_empty)


async def test_a_computed_prompt_goes_to_the_next_when_a_read_of_it_fails(
    scene: Scene, first: Peer
) -> None:
    link, lease_id = await lend_to_first(scene, first)
    link.send(Acknowledge(lease_id=lease_id, failure="a read failed"))
    await read_by_second(scene)
    await until(scene.is_empty)


async def test_a_computed_prompt_goes_to_the_next_when_its_frontend_lost_the_reader(
    scene: Scene, first: Peer
) -> None:
    link, lease_id = await lend_to_first(scene, first)
    to_worker = await scene.frontend.links.get(scene.worker.info().address)
    lost = DecodeLost(request_id="r", attempt=1, worker_id=WorkerId("first"))
    to_worker.send(lost)
    while not isinstance((await first.receive(Publish | Withdraw))[1], Withdraw):  # type: ignore[arg-type]
        pass
    link.send(Acknowledge(lease_id=lease_id, failure="withdrawn"))
    await read_by_second(scene)
    await until(scene.is_empty)
    to_worker.send(lost)
    await scene.frontend.receive(HandedOff)


async def test_a_computed_prompt_waits_until_there_is_room_for_it(
    scene: Scene, first: Peer
) -> None:
    link, _ = await lend_to_first(scene, first)
    await link.close()
    for _ in range(3):
        link, offer = await scene.other.receive(Offer)
        answer(link, offer, "full")
    await read_by_second(scene)


async def test_a_computed_prompt_waits_for_room_until_its_time_is_up(
    scene: Scene, first: Peer
) -> None:
    link, _ = await lend_to_first(scene, first)
    await link.close()
    link, offer = await scene.other.receive(Offer)
    scene.clock.advance(SEEK_S)
    answer(link, offer, "full")
    _, failed = await scene.frontend.receive(Failed)
    assert "other: full; first: decode worker first was lost" in failed.reason
    scene.clock.advance(LEASE_S + QUARANTINE_S)
    await until(scene.is_empty)


async def test_a_leases_epoch_is_over_when_its_blocks_are_free(scene: Scene) -> None:
    await submit(scene, await scene.other.listen(), num_tokens=60)
    link, offer = await scene.other.receive(Offer)
    lease_id = answer(link, offer)
    _, publish = await scene.other.receive(Publish)
    epoch, epochs = publish.watermark.epoch, scene.worker._transfer.epochs
    assert epoch is not None
    await scene.frontend.receive(Tokens)
    assert epochs.is_current(epoch)
    link.send(Acknowledge(lease_id=lease_id, failure=None))
    await until(scene.is_empty)
    assert not epochs.is_current(epoch)


async def test_a_reader_that_renews_keeps_its_lease_and_another_does_not(
    scene: Scene, first: Peer
) -> None:
    link, lease_id = await lend_to_first(scene, first)
    for number in range(4):
        scene.clock.advance(LEASE_S - 1)
        link.send(Renew(lease_ids=("no such lease", lease_id), asked_at=float(number)))
        while not isinstance(renewed := (await first.receive(Publish | Renewed))[1], Renewed):  # type: ignore[arg-type]
            pass
        assert renewed == Renewed(lease_ids=(lease_id,), asked_at=float(number))
    scene.clock.advance(LEASE_S)
    await read_by_second(scene)


async def test_what_was_published_last_comes_again_with_a_renewal(scene: Scene) -> None:
    await submit(scene, await scene.other.listen(), num_tokens=60)
    link, offer = await scene.other.receive(Offer)
    lease_id = answer(link, offer)
    _, published = await scene.other.receive(Publish)
    assert published.watermark.first_token_id is not None
    link.send(Renew(lease_ids=(lease_id,), asked_at=1.0))
    await scene.other.receive(Renewed)
    assert (await scene.other.receive(Publish))[1] == published
    link.send(Acknowledge(lease_id=lease_id, failure=None))
    await until(scene.is_empty)


async def test_a_reader_that_gives_up_is_replaced_before_its_last_read_is_over(
    scene: Scene, first: Peer
) -> None:
    link, lease_id = await lend_to_first(scene, first)
    link.send(GiveUp(lease_id=lease_id, reason="a read hangs"))
    await read_by_second(scene)
    assert scene.worker.engine.pool.num_held_blocks == 4
    link.send(Acknowledge(lease_id=lease_id, failure="a read hangs"))
    await until(scene.is_empty)


async def test_a_cancelled_prompt_is_offered_to_nobody_else(scene: Scene, first: Peer) -> None:
    link, _ = await lend_to_first(scene, first)
    await link.close()
    link, offer = await scene.other.receive(Offer)
    to_worker = await scene.frontend.links.get(scene.worker.info().address)
    to_worker.send(Cancel(attempts=(("r", 1),)))
    await until(lambda: scene.worker._prefilling.num_active == 0)
    lease_id = answer(link, offer)
    await scene.other.receive(Withdraw)
    link.send(Acknowledge(lease_id=lease_id, failure="withdrawn"))
    scene.clock.advance(LEASE_S + QUARANTINE_S)
    await until(scene.is_empty)
