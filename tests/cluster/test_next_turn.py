"""A conversation through Ray: the controller tells prefill where its last turn ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cluster.conftest import ClusterFrontend, MakeConfig, greedy

pytestmark = [pytest.mark.ray, pytest.mark.slow]


async def test_the_next_turn_computes_only_what_is_new(make_config: MakeConfig) -> None:
    config = make_config("turns")
    history = greedy("", 1).prompt_token_ids
    async with ClusterFrontend(config) as frontend:
        num_cached = []
        for turn in range(3):
            request = replace(greedy(f"turn {turn}", 100), prompt_token_ids=history)
            tokens: list[int] = []
            async for delta in frontend.frontend.generate(request):
                tokens += delta.token_ids
                if delta.num_cached_tokens is not None and len(num_cached) == turn:
                    num_cached.append(delta.num_cached_tokens)
            history = (*history, *tokens, 7)
        text = (await frontend.client.metrics_text()).decode()
    assert num_cached == [0, 144, 240]  # 149 and 250 tokens had their KV, in whole blocks
    lines = [line for line in text.splitlines() if line.startswith("pdray_prefix_borrows_total{")]
    filled = [float(line.split()[-1]) for line in lines if 'outcome="filled"' in line]
    assert sum(filled) == 2
