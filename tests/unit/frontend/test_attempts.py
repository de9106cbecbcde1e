"""Requests whose workers are lost: the next attempt goes on behind the tokens that have come."""

from __future__ import annotations

import asyncio

import pytest

from pdray.core.errors import WorkerLostError
from pdray.core.parked import LeaseKey
from pdray.frontend.attempts import MAX_ATTEMPTS
from pdray.frontend.frontend import Frontend
from pdray.link.connection import Connection
from pdray.link.messages import (
    Cancel,
    DecodeLost,
    Failed,
    HandedOff,
    Parked,
    PrefillLost,
    Submission,
)
from tests.frontend_scene import Scene, link_of, tokens, told_of_d1
from tests.local_cluster import num_placed_again, request_of
from tests.worker_peer import until


def read(scene: Scene) -> list[int]:
    return [token for delta in scene.deltas for token in delta.token_ids]


async def submitted_again(scene: Scene, attempt: int = 2) -> tuple[Connection, Submission]:
    """Whatever else the prefill worker was told before."""
    async with asyncio.timeout(20):
        while True:
            link, message = await scene.prefill._received.get()
            if isinstance(message, (Cancel, DecodeLost)):
                continue
            (submission,) = message.submissions
            assert submission.attempt == attempt
            return link, submission


async def test_a_lost_prefill_worker_costs_its_prompt_only(scene: Scene) -> None:
    reading = scene.start()
    link, _ = await scene.submitted()
    await link.close()
    _, cancel = await scene.decodes[0].receive(Cancel)
    assert cancel.attempts == (("r", 1),)
    link, submission = await submitted_again(scene)
    assert submission.request.output_token_ids == ()
    link.send(tokens(0, 11, is_last=True, attempt=2))
    await reading
    assert read(scene) == [11]
    assert scene.controller.finished_ids == ["r", "r"]
    assert num_placed_again(scene.frontend) == 1


async def test_with_all_candidates_lost_it_is_cancelled_where_it_was_and_goes_on(
    scene: Scene,
) -> None:
    reading = scene.start()
    await scene.submitted()
    for decode in scene.decodes:
        await (await link_of(decode)).close()
    await scene.prefill.receive(DecodeLost)
    _, cancel = await scene.prefill.receive(Cancel)
    assert cancel.attempts == (("r", 1),)
    link, _ = await submitted_again(scene)
    link.send(tokens(0, 11, is_last=True, attempt=2))
    await reading


async def test_a_decode_worker_lost_in_mid_stream_costs_no_token_and_doubles_none(
    scene: Scene,
) -> None:
    reading, link = await told_of_d1(scene)
    d1 = await link_of(scene.decodes[0])
    d1.send(tokens(1, 12, 13))
    d1.send(tokens(4, 15))  # it overtook the one before it
    await until(lambda: read(scene) == [11, 12, 13])
    await d1.close()
    link, submission = await submitted_again(scene)
    assert submission.request.prompt_token_ids == (5,) * 10
    assert submission.request.output_token_ids == (11, 12, 13)
    link.send(tokens(3, 99))  # a late one of the attempt that is lost
    link.send(tokens(3, 14, decode_id="d2", attempt=2))
    (await link_of(scene.decodes[1])).send(tokens(4, 16, is_last=True, attempt=2))
    await reading
    assert read(scene) == [11, 12, 13, 14, 16]


async def test_tokens_that_nobody_has_read_count_as_sent(scene: Scene) -> None:
    stream = scene.frontend.generate(request_of([5] * 10))
    first = asyncio.ensure_future(anext(stream))
    link, _ = await scene.submitted()
    link.send(tokens(0, 11, decode_id="d1"))
    await first
    d1 = await link_of(scene.decodes[0])
    d1.send(tokens(1, 12, 13))
    await d1.close()
    link, submission = await submitted_again(scene)
    assert submission.request.output_token_ids == (11, 12, 13)
    link.send(tokens(3, 14, is_last=True, attempt=2))
    assert [token async for delta in stream for token in delta.token_ids] == [12, 13, 14]


async def test_one_lost_with_all_the_blocks_is_computed_again(scene: Scene) -> None:
    reading, link = await told_of_d1(scene)
    await (await link_of(scene.decodes[0])).close()
    await scene.prefill.receive(DecodeLost)
    link.send(HandedOff(request_id="r", attempt=1))
    link, submission = await submitted_again(scene)
    assert submission.request.output_token_ids == (11,)
    link.send(tokens(1, 12, is_last=True, attempt=2))
    await reading
    assert read(scene) == [11, 12]


async def test_with_the_prefill_worker_lost_the_decode_worker_is_asked_first(scene: Scene) -> None:
    reading, link = await told_of_d1(scene)
    await link.close()
    decode, _ = await scene.decodes[0].receive(PrefillLost)
    decode.send(Failed(request_id="r", attempt=1, reason="its blocks were not all there"))
    link, _ = await submitted_again(scene)
    link.send(tokens(1, 12, is_last=True, attempt=2))
    await reading
    assert read(scene) == [11, 12]


async def test_what_would_come_again_is_not_tried_again(scene: Scene) -> None:
    reading = scene.start()
    link, _ = await scene.submitted()
    link.send(Failed(request_id="r", attempt=1, reason="a bad grammar", comes_again=True))
    with pytest.raises(WorkerLostError, match="a bad grammar"):
        await reading
    assert num_placed_again(scene.frontend) == 0


async def test_one_that_loses_worker_after_worker_fails_in_the_end(scene: Scene) -> None:
    reading = scene.start()
    link, _ = await scene.submitted()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        link.send(Failed(request_id="r", attempt=attempt, reason=f"failed {attempt}"))
        if attempt < MAX_ATTEMPTS:
            link, _ = await submitted_again(scene, attempt + 1)
    with pytest.raises(WorkerLostError, match=f"failed {MAX_ATTEMPTS}"):
        await reading
    assert num_placed_again(scene.frontend) == MAX_ATTEMPTS - 1


async def test_one_that_is_refused_meanwhile_asks_again_and_for_no_more_than_is_left(
    scene: Scene,
) -> None:
    scene.controller.num_refused = 2
    reading, link = await told_of_d1(scene)
    await (await link_of(scene.decodes[0])).close()
    await scene.prefill.receive(DecodeLost)
    link.send(HandedOff(request_id="r", attempt=1))
    link, _ = await submitted_again(scene)
    link.send(tokens(1, 12, is_last=True, attempt=2))
    await reading
    assert [(ask.num_prompt_tokens, ask.max_tokens) for ask in scene.controller.asks] == [
        (10, 16),
        *[(11, 15)] * 3,
    ]


async def test_without_a_worker_in_time_the_loss_is_told(scene: Scene) -> None:
    scene.controller.num_refused = 1000
    scene.frontend = Frontend("f", scene.controller, max_unread_tokens=8, patience_s=0.3)
    reading = scene.start()
    link, _ = await scene.submitted()
    await link.close()
    with pytest.raises(WorkerLostError, match="worker p was lost while the request was prefilling"):
        await reading
    assert scene.frontend.num_in_flight == 0
    await scene.frontend.stop()


async def test_a_client_that_leaves_meanwhile_ends_it(scene: Scene) -> None:
    scene.controller.num_refused = 1000
    stream = scene.frontend.generate(request_of([5] * 10))
    first = asyncio.ensure_future(anext(stream))
    link, _ = await scene.submitted()
    link.send(tokens(0, 11, decode_id="d1"))
    await first
    (live,) = scene.frontend._live.values()
    await (await link_of(scene.decodes[0])).close()
    await scene.prefill.receive(DecodeLost)
    link.send(HandedOff(request_id="r", attempt=1))
    await until(lambda: len(scene.controller.asks) > 1)
    await stream.aclose()
    assert live.placing_again is not None
    await asyncio.gather(live.placing_again, return_exceptions=True)
    assert live.placing_again.cancelled()
    assert scene.frontend.num_in_flight == 0


def parked_in(attempt: int) -> Parked:
    return Parked(
        request_id="r",
        attempt=attempt,
        key=LeaseKey(lease_id=f"lease {attempt}", secret=b"s"),
        secret_id="one",
        lease_s=5.0,
    )


async def test_a_prompt_that_is_to_be_parked_is_computed_elsewhere(scene: Scene) -> None:
    parking = asyncio.ensure_future(scene.frontend.park(request_of([5] * 10)))
    link, _ = await scene.submitted()
    await link.close()
    link, submission = await submitted_again(scene)
    assert submission.is_parked
    link.send(parked_in(2))
    link.send(tokens(0, 11, attempt=2))
    parked = await parking
    assert parked.lease is not None
    assert parked.lease.key.lease_id == "lease 2"


async def test_one_that_was_parked_already_is_not_placed_again(scene: Scene) -> None:
    parking = asyncio.ensure_future(scene.frontend.park(request_of([5] * 10)))
    link, _ = await scene.submitted()
    link.send(parked_in(1))
    await link.close()
    with pytest.raises(WorkerLostError, match="worker p was lost"):
        await parking
