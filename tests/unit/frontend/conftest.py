"""What the tests of a frontend share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pdray.frontend.frontend import Frontend
from tests.frontend_scene import OneAnswer, Scene
from tests.worker_peer import Peer, closing


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    prefill, *decodes = (Peer(peer_id, layout_digest="same") for peer_id in ("p", "d1", "d2"))
    async with closing(prefill, *decodes):
        addresses = [await decode.listen() for decode in decodes]
        controller = OneAnswer(await prefill.listen(), tuple(addresses))
        frontend = Frontend("f", controller, max_unread_tokens=8)
        yield Scene(prefill, decodes, controller, frontend)
        await frontend.stop()
