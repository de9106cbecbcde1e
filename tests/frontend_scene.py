"""A real frontend, with its controller's answers given and its workers played."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdray.core.placement import (
    KeptPrefix,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    ServingLimits,
    WorkerAddress,
)
from pdray.core.request import FinishReason, TokenChunk, WorkerId
from pdray.frontend.frontend import Frontend
from pdray.frontend.token_stream import TokenDelta
from pdray.link.connection import Connection
from pdray.link.messages import Submission, Submit, Tokens
from tests.local_cluster import request_of
from tests.worker_peer import Peer, until


@dataclass(slots=True, eq=False)
class OneAnswer:
    """A controller that places everything alike, but for ``num_refused`` asks after the first."""

    prefill: WorkerAddress
    decodes: tuple[WorkerAddress, ...]
    finished_ids: list[str] = field(default_factory=list)
    kept: list[KeptPrefix] = field(default_factory=list)
    num_refused: int = 0
    asks: list[PlacementAsk] = field(default_factory=list)
    moves: list[MoveAsk] = field(default_factory=list)

    async def place(self, asks: Sequence[PlacementAsk]) -> Sequence[Placement | Queued | Refusal]:
        self.asks += asks
        if 1 < len(self.asks) <= 1 + self.num_refused:
            return [
                Refusal(request_id=ask.request_id, reason="full", retry_after_s=1.0) for ask in asks
            ]
        return [
            Placement(
                request_id=ask.request_id, prefill=self.prefill, decode_candidates=self.decodes
            )
            for ask in asks
        ]

    async def wait(self, request_id: str) -> Placement | Refusal:
        raise AssertionError("nothing is queued here")

    async def move(self, asks: Sequence[MoveAsk]) -> Sequence[WorkerAddress | None]:
        self.moves += asks
        return [
            next((each for each in self.decodes if _may_go_on(each.worker_id, ask)), None)
            for ask in asks
        ]

    def finished(self, request_ids: Sequence[str], kept: Sequence[KeptPrefix] = ()) -> None:
        self.finished_ids += request_ids
        self.kept += kept

    async def limits(self) -> ServingLimits:
        return ServingLimits(max_model_len=512, max_sequence_tokens=512, model_digest="m")


def _may_go_on(worker_id: WorkerId, ask: MoveAsk) -> bool:
    return worker_id not in (ask.source_id, *ask.refused)


@dataclass(slots=True, eq=False)
class Scene:
    prefill: Peer
    decodes: list[Peer]
    controller: OneAnswer
    frontend: Frontend
    deltas: list[TokenDelta] = field(default_factory=list)

    def start(self) -> asyncio.Task[None]:
        async def read() -> None:
            async for delta in self.frontend.generate(request_of([5] * 10)):
                self.deltas.append(delta)

        return asyncio.create_task(read())

    async def submitted(self) -> tuple[Connection, Submission]:
        link, submit = await self.prefill.receive(Submit)
        (submission,) = submit.submissions
        return link, submission


def tokens(
    index: int,
    *token_ids: int,
    decode_id: str | None = None,
    is_last: bool = False,
    attempt: int = 1,
) -> Tokens:
    chunk = TokenChunk(
        request_id="r",
        attempt=attempt,
        index=index,
        token_ids=token_ids,
        finish_reason=FinishReason.LENGTH if is_last else None,
        decode_worker_id=None if decode_id is None else WorkerId(decode_id),
        num_cached_tokens=None,
    )
    return Tokens(chunks=(chunk,))


async def link_of(decode: Peer, frontend_id: str = "f") -> Connection:
    """The frontend's link as the decode worker sees it."""
    await until(lambda: frontend_id in decode.links._incoming)
    return decode.links._incoming[frontend_id].connection


async def told_of_d1(scene: Scene) -> tuple[asyncio.Task[None], Connection]:
    """The first token is there, and d1 is to go on."""
    reading = scene.start()
    link, _ = await scene.submitted()
    link.send(tokens(0, 11, decode_id="d1"))
    await until(lambda: len(scene.deltas) == 1)
    return reading, link
