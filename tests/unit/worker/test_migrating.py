"""A decode that is to leave a real worker, with its target and its frontend played: refused, hung,
lost or cancelled at each step, it goes on or ends, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdray.core.handoff import Handoff
from pdray.core.request import FinishReason
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    Cancel,
    CaughtUp,
    Message,
    Migrate,
    Moved,
    Offer,
    OfferReply,
    Publish,
    Submission,
    Submit,
    Tokens,
    Withdraw,
)
from pdray.worker.migrating import COPY_S, PAUSE_S
from tests.local_cluster import request_of
from tests.unit.worker.conftest import Scene
from tests.worker_peer import until

NUM_PROMPT = 40
NUM_TOKENS = 160


class Heard:
    """What the frontend is told of the request."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    async def next(self) -> Message:
        """Tokens are put into ``token_ids``: each once, and in order."""
        _, message = await self._scene.frontend.receive(Message)  # type: ignore[arg-type]
        if isinstance(message, Tokens):
            for chunk in message.chunks:
                assert chunk.index == len(self.token_ids)
                self.token_ids += chunk.token_ids
                self.finish_reason = chunk.finish_reason
        return message

    async def moved(self) -> Moved:
        while not isinstance(message := await self.next(), Moved):
            pass
        assert message.target_id == "other"
        return message

    async def to_its_end(self) -> list[int]:
        while self.finish_reason is None:
            assert isinstance(await self.next(), Tokens)
        await until(self._scene.is_empty)
        assert self._scene.worker.engine.num_unaccounted_blocks == 0
        return self.token_ids


async def start(scene: Scene, *, request_id: str = "r") -> Heard:
    """A request that the worker decodes itself, once its first tokens are there."""
    address = scene.worker.info().address
    request = request_of([5] * NUM_PROMPT, NUM_TOKENS, request_id=request_id)
    submission = Submission(request=request, attempt=1, decode_candidates=(address,))
    link = await scene.frontend.links.get(address)
    link.send(Submit(submissions=(submission,)))
    heard = Heard(scene)
    while len(heard.token_ids) < 2:
        await heard.next()
    return heard


@pytest.fixture
async def calm(scene: Scene) -> list[int]:
    return await (await start(scene, request_id="calm")).to_its_end()


async def send(scene: Scene, message: Message) -> None:
    (await scene.frontend.links.get(scene.worker.info().address)).send(message)


async def offered(scene: Scene) -> tuple[Connection, Handoff]:
    target = await scene.other.listen()
    await send(scene, Migrate(request_id="r", attempt=1, target=target))
    link, offer = await scene.other.receive(Offer)
    assert offer.handoff.is_migration
    return link, offer.handoff


def accept(link: Connection, handoff: Handoff) -> None:
    link.send(OfferReply(lease_id=handoff.lease_id, refusal=None, is_final=False))


async def copying(scene: Scene) -> tuple[Connection, Handoff]:
    link, handoff = await offered(scene)
    accept(link, handoff)
    _, publish = await scene.other.receive(Publish)
    assert publish.watermark.first_token_id is None
    assert publish.watermark.ready_tokens % 16 == 0
    return link, handoff


async def paused(scene: Scene) -> tuple[Connection, Handoff, list[int]]:
    """And the tokens that it has sent to its target."""
    link, handoff = await copying(scene)
    while True:
        link.send(CaughtUp(lease_id=handoff.lease_id))
        _, publish = await scene.other.receive(Publish)
        mark = publish.watermark
        if mark.first_token_id is not None:
            assert handoff.made_token_ids is not None
            token_ids = [*handoff.made_token_ids, mark.first_token_id, *mark.later_token_ids]
            assert mark.ready_tokens == NUM_PROMPT + len(token_ids) - 1
            return link, handoff, token_ids


async def acknowledge_withdrawal(scene: Scene, link: Connection, handoff: Handoff) -> None:
    _, withdraw = await scene.other.receive(Withdraw)
    assert withdraw.lease_id == handoff.lease_id
    link.send(Acknowledge(lease_id=handoff.lease_id, failure="withdrawn"))


async def test_the_target_gets_every_token_that_the_frontend_got(
    calm: list[int], scene: Scene
) -> None:
    heard = await start(scene)
    link, handoff, token_ids = await paused(scene)
    link.send(Acknowledge(lease_id=handoff.lease_id, failure=None))
    moved = await heard.moved()
    assert moved.failure is None
    assert heard.token_ids == token_ids == calm[: len(token_ids)]
    await until(scene.is_empty)
    assert scene.worker.engine.num_unaccounted_blocks == 0


async def test_a_refused_one_goes_on(calm: list[int], scene: Scene) -> None:
    heard = await start(scene)
    link, handoff = await offered(scene)
    link.send(OfferReply(lease_id=handoff.lease_id, refusal="no room", is_final=False))
    moved = await heard.moved()
    assert (moved.failure, moved.may_run_there) == ("no room", False)
    assert await heard.to_its_end() == calm


async def test_what_does_not_decode_here_does_not_move(scene: Scene) -> None:
    target = await scene.other.listen()
    await send(scene, Migrate(request_id="r", attempt=1, target=target))
    _, moved = await scene.frontend.receive(Moved)
    assert moved.failure == "it does not decode on w"


async def test_a_target_that_gives_up_while_it_copies(calm: list[int], scene: Scene) -> None:
    heard = await start(scene)
    link, handoff = await copying(scene)
    link.send(Acknowledge(lease_id=handoff.lease_id, failure="no more"))
    moved = await heard.moved()
    assert (moved.failure, moved.may_run_there) == ("no more", False)
    assert await heard.to_its_end() == calm


async def test_a_target_that_gives_up_in_the_pause(calm: list[int], scene: Scene) -> None:
    heard = await start(scene)
    link, handoff, _ = await paused(scene)
    link.send(Acknowledge(lease_id=handoff.lease_id, failure="no more"))
    assert (await heard.moved()).failure == "no more"
    assert await heard.to_its_end() == calm


async def test_a_target_that_hangs_in_the_pause_may_have_begun(
    calm: list[int], scene: Scene
) -> None:
    heard = await start(scene)
    link, handoff, _ = await paused(scene)
    scene.clock.advance(PAUSE_S)
    moved = await heard.moved()
    assert moved.failure is not None
    assert moved.may_run_there
    await acknowledge_withdrawal(scene, link, handoff)
    assert await heard.to_its_end() == calm


async def test_a_target_that_is_lost_in_the_pause(calm: list[int], scene: Scene) -> None:
    heard = await start(scene)
    link, _, _ = await paused(scene)
    await link.close()
    moved = await heard.moved()
    assert moved.failure is not None
    assert moved.may_run_there
    while heard.finish_reason is None:
        await heard.next()
    assert heard.token_ids == calm
    assert scene.num_quarantined > 0
    scene.clock.advance(1000.0)
    await until(scene.is_empty)


async def test_one_that_ends_while_it_is_copied_takes_its_migration_with_it(
    calm: list[int], scene: Scene
) -> None:
    heard = await start(scene)
    link, handoff = await copying(scene)
    while heard.finish_reason is None:
        await heard.next()
    assert heard.token_ids == calm
    await acknowledge_withdrawal(scene, link, handoff)
    await until(scene.is_empty)


@pytest.mark.parametrize("step", ["offered", "copying", "paused"])
async def test_cancelled_at_any_step_it_leaves_nothing(scene: Scene, step: str) -> None:
    await start(scene)
    steps = {"offered": offered, "copying": copying, "paused": paused}
    link, handoff, *_ = await steps[step](scene)  # type: ignore[operator]
    await send(scene, Cancel(attempts=(("r", 1),)))
    await until(lambda: not len(scene.worker._attempts))
    if step == "offered":
        accept(link, handoff)
    await acknowledge_withdrawal(scene, link, handoff)
    await until(scene.is_empty)
    assert scene.worker.engine.num_unaccounted_blocks == 0
    assert scene.worker._migrating.num_active == 0


async def test_one_that_is_asked_twice_moves_once(calm: list[int], scene: Scene) -> None:
    heard = await start(scene)
    link, handoff = await offered(scene)
    target = await scene.other.listen()
    await send(scene, Migrate(request_id="r", attempt=1, target=replace(target, host="x")))
    assert (await heard.moved()).failure == "it is on its way to other"
    link.send(OfferReply(lease_id=handoff.lease_id, refusal="no", is_final=True))
    assert (await heard.moved()).failure == "no"
    assert await heard.to_its_end() == calm


async def test_a_target_that_hangs_while_it_copies_is_given_up(
    calm: list[int], scene: Scene
) -> None:
    heard = await start(scene)
    link, handoff = await copying(scene)
    scene.clock.advance(COPY_S)
    _, withdraw = await scene.other.receive(Withdraw)
    link.send(Acknowledge(lease_id=withdraw.lease_id, failure="withdrawn"))
    while heard.finish_reason is None:
        await heard.next()
    assert heard.token_ids == calm
    await until(scene.is_empty)
    assert handoff.lease_id == withdraw.lease_id
