from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from pdray.cluster import introductions
from pdray.cluster.handles import WorkerHandle
from pdray.cluster.introductions import Introductions
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from tests.fleet_factories import make_info


@dataclass(eq=False)
class Handle:
    """An actor's ``meet``: notes who dials whom, and fails as the test says."""

    name: str
    dialled: list[tuple[str, str]]
    failures: dict[WorkerId, str] = field(default_factory=dict)

    @property
    def meet(self) -> Handle:
        return self

    def remote(self, peers: Sequence[WorkerAddress]) -> Awaitable[dict[WorkerId, str]]:
        return self._meet([peer.worker_id for peer in peers])

    async def _meet(self, peers: list[WorkerId]) -> dict[WorkerId, str]:
        await asyncio.sleep(0)
        self.dialled += [(self.name, peer) for peer in peers]
        return {peer: self.failures[peer] for peer in peers if peer in self.failures}


class Party:
    def __init__(self) -> None:
        self.met: list[tuple[str, str, str | None]] = []
        self.dialled: list[tuple[str, str]] = []
        self.introductions = Introductions(lambda *told: self.met.append(told))
        self.handles: dict[str, Handle] = {}

    async def start(self, name: str, role: Role) -> None:
        handle = self.handles.setdefault(name, Handle(name, self.dialled))
        await self.introductions.introduce(make_info(name, role), cast("WorkerHandle", handle))


async def test_the_prefill_worker_dials_whoever_came_first() -> None:
    party = Party()
    await party.start("p0", Role.PREFILL)
    await party.start("d0", Role.DECODE)
    await party.start("p1", Role.PREFILL)
    assert party.dialled == [("p0", "d0"), ("p1", "d0")]
    assert party.met == [("p0", "d0", None), ("p1", "d0", None)]


async def test_decode_workers_meet_each_other_and_mixed_ones_everybody() -> None:
    party = Party()
    await party.start("d0", Role.DECODE)
    await party.start("d1", Role.DECODE)
    await party.start("m0", Role.MIXED)
    assert party.dialled == [("d1", "d0"), ("m0", "d0"), ("m0", "d1")]


async def test_workers_that_start_together_miss_nobody() -> None:
    party = Party()
    await asyncio.gather(
        *(party.start(f"p{i}", Role.PREFILL) for i in range(3)),
        *(party.start(f"d{i}", Role.DECODE) for i in range(3)),
    )
    pairs = {(f"p{i}", f"d{j}") for i in range(3) for j in range(3)}
    assert {pair for pair in party.dialled if pair[0].startswith("p")} == pairs


async def test_a_pair_that_failed_tries_again_while_both_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(introductions, "_RETRY_S", 0.01)
    party = Party()
    party.handles["p"] = Handle("p", party.dialled, {WorkerId("d"): "no way"})
    await party.start("d", Role.DECODE)
    await party.start("p", Role.PREFILL)
    assert party.met == [("p", "d", "no way")]
    party.handles["p"].failures.clear()
    while len(party.met) < 2:
        await asyncio.sleep(0.005)
    assert party.met[1] == ("p", "d", None)


async def test_nobody_meets_a_worker_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introductions, "_RETRY_S", 0.01)
    party = Party()
    party.handles["p"] = Handle("p", party.dialled, {WorkerId("d"): "no way"})
    await party.start("d", Role.DECODE)
    await party.start("p", Role.PREFILL)
    party.introductions.forget(WorkerId("d"))
    await asyncio.sleep(0.05)
    assert len(party.met) == 1
