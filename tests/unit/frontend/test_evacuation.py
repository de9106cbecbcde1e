"""Decodes leave a worker that drains, if somebody takes them; what it has not begun is placed
again, however often."""

from __future__ import annotations

from pdray.core.request import WorkerId
from pdray.frontend.attempts import MAX_ATTEMPTS
from pdray.link.connection import Connection
from pdray.link.messages import Cancel, Draining, Failed, Migrate, Moved
from tests.frontend_scene import Scene, link_of, tokens, told_of_d1
from tests.worker_peer import until


def tell_moved(link: Connection, failure: str | None) -> None:
    target_id = WorkerId("d2")
    link.send(Moved(request_id="r", attempt=1, target_id=target_id, failure=failure))


async def test_a_decode_leaves_a_worker_that_drains_for_one_that_takes_it(scene: Scene) -> None:
    reading, _ = await told_of_d1(scene)
    d1 = await link_of(scene.decodes[0])
    d1.send(tokens(1, 12))
    d1.send(Draining())
    _, migrate = await scene.decodes[0].receive(Migrate)
    assert migrate.target.worker_id == "d2"
    tell_moved(d1, "no room")
    await scene.decodes[0].receive(Migrate)  # there is nobody else: it may have room by now
    assert [ask.refused for ask in scene.controller.moves] == [(), ("d2",), ()]
    assert {ask.source_id for ask in scene.controller.moves} == {"d1"}
    d1.send(tokens(2, 13))
    tell_moved(d1, None)
    (await link_of(scene.decodes[1])).send(tokens(3, 14, is_last=True))
    await reading
    assert [token for delta in scene.deltas for token in delta.token_ids] == [11, 12, 13, 14]


async def test_what_comes_to_decode_on_a_worker_that_drains_leaves_it_then(scene: Scene) -> None:
    reading, _ = await told_of_d1(scene)
    d1 = await link_of(scene.decodes[0])
    d1.send(Draining())
    d1.send(Draining())
    await until(lambda: "d1" in scene.frontend._evacuation._leavers)
    assert scene.controller.moves == []
    d1.send(tokens(1, 12))
    await scene.decodes[0].receive(Migrate)
    d1.send(tokens(2, 13, is_last=True))
    await reading


async def test_a_prompt_may_be_given_back_more_often_than_it_may_be_lost(scene: Scene) -> None:
    reading = scene.start()
    for attempt in range(1, 2 * MAX_ATTEMPTS):
        link, submission = await scene.submitted()
        assert submission.attempt == attempt
        link.send(
            Failed(request_id="r", attempt=attempt, reason="worker p drains", is_given_back=True)
        )
        await scene.prefill.receive(Cancel)
    link, submission = await scene.submitted()
    link.send(tokens(0, 11, is_last=True, attempt=submission.attempt))
    await reading
