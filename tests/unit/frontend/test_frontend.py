"""A real frontend, with its controller's answers given and its workers played."""

from __future__ import annotations

import asyncio

from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.link.messages import Cancel, DecodeLost, Failed, GoesOn, HandedOff, PrefillLost
from tests.frontend_scene import Scene, link_of, tokens, told_of_d1
from tests.local_cluster import request_of
from tests.worker_peer import LINK_KEY, until


async def test_tokens_of_two_workers_in_the_wrong_order_are_one_stream(scene: Scene) -> None:
    reading = scene.start()
    link, submission = await scene.submitted()
    assert [each.worker_id for each in submission.decode_candidates] == ["d1", "d2"]
    (await link_of(scene.decodes[1])).send(tokens(1, 12, is_last=True))
    link.send(tokens(0, 11, decode_id="d2"))
    await reading
    assert [token for delta in scene.deltas for token in delta.token_ids] == [11, 12]
    assert scene.controller.finished_ids == ["r"]


async def test_one_lost_candidate_of_two_does_no_harm(scene: Scene) -> None:
    reading = scene.start()
    link, _ = await scene.submitted()
    await (await link_of(scene.decodes[0])).close()
    link.send(tokens(0, 11, decode_id="d2"))
    (await link_of(scene.decodes[1])).send(tokens(1, 12, is_last=True))
    await reading


async def test_a_decode_worker_that_was_lost_before_the_first_token_is_not_waited_for(
    scene: Scene,
) -> None:
    reading = scene.start()
    link, _ = await scene.submitted()
    await (await link_of(scene.decodes[0])).close()
    await until(lambda: "d1" not in scene.frontend._peers._outgoing)
    link.send(tokens(0, 11, decode_id="d1"))
    _, lost = await scene.prefill.receive(DecodeLost)
    assert lost == DecodeLost(request_id="r", attempt=1, worker_id=WorkerId("d1"))
    link.send(GoesOn(request_id="r", attempt=1, worker_id=WorkerId("d2")))
    (await link_of(scene.decodes[1])).send(tokens(1, 12, is_last=True))
    await reading
    assert [token for delta in scene.deltas for token in delta.token_ids] == [11, 12]


async def test_a_decode_worker_lost_before_its_first_token_is_replaced(scene: Scene) -> None:
    reading, link = await told_of_d1(scene)
    await (await link_of(scene.decodes[0])).close()
    await scene.prefill.receive(DecodeLost)
    link.send(GoesOn(request_id="r", attempt=1, worker_id=WorkerId("d2")))
    (await link_of(scene.decodes[1])).send(tokens(1, 12, is_last=True))
    await reading
    assert [token for delta in scene.deltas for token in delta.token_ids] == [11, 12]


async def test_an_answer_that_crosses_the_new_name_changes_nothing(scene: Scene) -> None:
    reading, link = await told_of_d1(scene)
    await (await link_of(scene.decodes[0])).close()
    await scene.prefill.receive(DecodeLost)
    link.send(GoesOn(request_id="r", attempt=1, worker_id=WorkerId("d2")))
    link.send(HandedOff(request_id="r", attempt=1))
    (await link_of(scene.decodes[1])).send(tokens(1, 12, is_last=True))
    await reading


async def test_only_one_worker_decodes_whoever_is_named_later(scene: Scene) -> None:
    reading, link = await told_of_d1(scene)
    d1, d2 = [await link_of(decode) for decode in scene.decodes]
    d1.send(tokens(1, 12))
    await until(lambda: len(scene.deltas) == 2)
    link.send(GoesOn(request_id="r", attempt=1, worker_id=WorkerId("d2")))
    for peer in (scene.decodes[1], scene.prefill):
        _, cancel = await peer.receive(Cancel)
        assert cancel.attempts == (("r", 1),)
    d2.send(tokens(2, 99, is_last=True))
    link.send(Failed(request_id="r", attempt=1, reason="cancelled"))
    d1.send(tokens(2, 13, is_last=True))
    await reading
    assert [token for delta in scene.deltas for token in delta.token_ids] == [11, 12, 13]


async def test_one_that_is_replaced_is_cancelled_and_not_listened_to(scene: Scene) -> None:
    reading, link = await told_of_d1(scene)
    d1, d2 = [await link_of(decode) for decode in scene.decodes]
    link.send(GoesOn(request_id="r", attempt=1, worker_id=WorkerId("d2")))
    await scene.decodes[0].receive(Cancel)
    d1.send(tokens(1, 99, is_last=True))
    d2.send(tokens(1, 12, is_last=True))
    await reading
    assert [token for delta in scene.deltas for token in delta.token_ids] == [11, 12]


async def test_a_decode_worker_without_the_blocks_is_replaced_like_a_lost_one(
    scene: Scene,
) -> None:
    reading, link = await told_of_d1(scene)
    failed = Failed(request_id="r", attempt=1, reason="prefill worker p was lost")
    (await link_of(scene.decodes[0])).send(failed)
    await scene.prefill.receive(DecodeLost)
    link.send(GoesOn(request_id="r", attempt=1, worker_id=WorkerId("d2")))
    (await link_of(scene.decodes[1])).send(tokens(1, 12, is_last=True))
    await reading


async def test_with_the_prefill_worker_lost_a_decode_worker_with_all_blocks_goes_on(
    scene: Scene,
) -> None:
    reading, link = await told_of_d1(scene)
    await link.close()
    decode, _ = await scene.decodes[0].receive(PrefillLost)
    decode.send(tokens(1, 12, is_last=True))
    await reading


async def test_a_prefill_worker_lost_while_other_links_are_made_is_not_waited_for(
    scene: Scene,
) -> None:
    """The last decode worker takes the connection and says nothing, until it hangs up."""
    dialled = asyncio.Queue[asyncio.StreamWriter]()
    silent = await asyncio.start_server(lambda _, w: dialled.put_nowait(w), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    address = WorkerAddress(
        worker_id=WorkerId("silent"), host="127.0.0.1", port=port, link_key=LINK_KEY
    )
    scene.controller.decodes += (address,)
    reading = scene.start()
    writer = await dialled.get()
    prefill = await link_of(scene.prefill)
    await until(lambda: "p" in scene.frontend._peers._outgoing)
    await prefill.close()
    await until(lambda: "p" not in scene.frontend._peers._outgoing)
    silent.close()
    writer.transport.abort()
    link, submission = await scene.submitted()
    assert submission.attempt == 1
    link.send(tokens(0, 11, is_last=True))
    await reading


async def test_a_place_is_given_back_when_all_tokens_have_come_read_or_not(scene: Scene) -> None:
    stream = scene.frontend.generate(request_of([5] * 10))
    first = asyncio.ensure_future(anext(stream))
    link, _ = await scene.submitted()
    link.send(tokens(0, 11, decode_id="d1"))
    await first
    (await link_of(scene.decodes[0])).send(tokens(1, 12, is_last=True))
    await until(lambda: scene.controller.finished_ids == ["r"])
    await stream.aclose()
    assert scene.controller.finished_ids == ["r"]


async def test_what_a_request_leaves_is_told_with_its_end(scene: Scene) -> None:
    request = request_of([5] * 30)
    stream = scene.frontend.generate(request)
    first = asyncio.ensure_future(anext(stream))
    link, submission = await scene.submitted()
    assert submission.prefix_source is None
    link.send(tokens(0, 11, decode_id="d1"))
    await first
    (await link_of(scene.decodes[0])).send(tokens(1, 12, 13, is_last=True))
    await until(lambda: scene.controller.finished_ids == ["r"])
    await stream.aclose()
    # 32 tokens have their KV: the prompt's 30, and all outputs but the newest.
    assert [(each.num_tokens, each.worker_id) for each in scene.controller.kept] == [
        (16, "d1"),
        (32, "d1"),
    ]


async def test_a_cancelled_request_leaves_what_it_had_and_one_without_a_token_nothing(
    scene: Scene,
) -> None:
    for has_token in (False, True):
        stream = scene.frontend.generate(request_of([5] * 30))
        first = asyncio.ensure_future(anext(stream))
        link, _ = await scene.submitted()
        if has_token:
            link.send(tokens(0, 11, decode_id="d1"))
            await first
        else:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await stream.aclose()
        await scene.prefill.receive(Cancel)
        # Nothing of it was decoded: the prefill worker made its newest token.
        assert [each.worker_id for each in scene.controller.kept] == ["p"] * has_token
