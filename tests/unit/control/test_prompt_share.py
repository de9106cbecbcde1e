"""Mode auto keeps decodes away from the workers that compute prompts, and uses all when it can."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.mode import Mode
from pdray.core.placement import Placement
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot

TIMES = StepTime(
    base_s=0.03, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.003, context_token_s=0.0
)
PROMPT_TOKENS = 2000
"""Two seconds of a worker's time."""


class Service:
    """A control plane of mode auto with workers that answer at once, and its clock."""

    def __init__(self, num_workers: int) -> None:
        config = ControlConfig(max_queued_requests=8, queue_timeout_s=60.0, mode=Mode.AUTO)
        self.control = ControlPlane(config, make_policy("cost"))
        self.now = 0.0
        self.num_placed = 0
        self.worker_ids = [f"m{index}" for index in range(num_workers)]
        for worker_id in self.worker_ids:
            info = make_info(worker_id, Role.MIXED, max_batch_size=16, max_sequence_tokens=4096)
            self.control.worker_joined(info, 0.0)
        self.pass_time(0.0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.control.frontend_seen("f", self.now)
        for worker_id in self.worker_ids:
            self.control.snapshot(make_snapshot(worker_id, step_time=TIMES), self.now)
        self.control.tick(self.now)

    def place(self, num_prompt_tokens: int, max_tokens: int) -> Placement:
        self.num_placed += 1
        ask = make_ask(
            f"r{self.num_placed}", num_prompt_tokens=num_prompt_tokens, max_tokens=max_tokens
        )
        (answer,) = self.control.place("f", [ask], self.now)
        assert isinstance(answer, Placement)
        return answer

    def place_chat(self) -> str:
        return self.place(100, 1000).decode_candidates[0].worker_id

    def place_prompt(self) -> str:
        """One that ends at once."""
        answer = self.place(PROMPT_TOKENS, 1)
        self.control.finished("f", [answer.request_id], self.now)
        assert answer.prefill is not None
        return answer.prefill.worker_id

    def prompts_for(self, seconds: float, rate: float, seed: int = 0) -> Counter[str]:
        rng = random.Random(seed)
        until, placed = self.now + seconds, Counter[str]()
        while self.now < until:
            self.pass_time(rng.expovariate(rate))
            placed[self.place_prompt()] += 1
        return placed


def test_without_prompts_decodes_spread_over_all_workers() -> None:
    service = Service(4)
    assert sorted(Counter(service.place_chat() for _ in range(8)).values()) == [2, 2, 2, 2]


def test_with_prompts_of_late_decodes_gather_where_none_are_computed() -> None:
    service = Service(2)
    service.prompts_for(60.0, rate=0.25)
    chats = {service.place_chat() for _ in range(4)}
    assert len(chats) == 1
    prompts = service.prompts_for(60.0, rate=0.25)
    assert prompts[chats.pop()] == 0


@pytest.mark.parametrize(("num_workers", "rate", "num_for_prompts"), [(8, 1.0, 3), (8, 2.0, 5)])
def test_as_many_workers_compute_prompts_as_these_keep_busy(
    num_workers: int, rate: float, num_for_prompts: int
) -> None:
    service = Service(num_workers)
    service.prompts_for(120.0, rate)
    chats = Counter[str]()
    for _ in range(16):
        chats[service.place_chat()] += 1
        service.prompts_for(2.0, rate, seed=len(chats))
    assert num_workers - len(chats) == pytest.approx(num_for_prompts, abs=1)


def test_decodes_come_back_when_prompts_end() -> None:
    service = Service(2)
    service.prompts_for(60.0, rate=0.25)
    for _ in range(2):
        service.place_chat()
    for _ in range(100):
        service.pass_time(5.0)
    assert len({service.place_chat() for _ in range(2)}) == 1, "on the one that had none"
    assert {service.place_chat() for _ in range(2)} == set(service.worker_ids)
