"""What a real worker does with blocks that a silent, lost or doubtful reader may be reading."""

from __future__ import annotations

from pdray.link.connection import Connection
from pdray.link.messages import Acknowledge, Failed, Offer, Publish, Tokens
from pdray.worker.lending import QUARANTINE_S
from tests.unit.worker.conftest import LEASE_S, Scene
from tests.unit.worker.test_prefilling import answer, submit
from tests.worker_peer import until


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
    assert failed.reason == "a read failed"
    await until(scene.is_empty)
