"""A conversation with Gemma 3 270M over real workers, across its window of 512 tokens."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pdray.core.request import Request
from pdray.local import LocalCluster
from tests.engine_driver import random_prompts
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.local_cluster import config_of, request_of, until_idle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_TOKENS = 80
VOCAB_SIZE = 50_000


async def first_token_and_rest(
    cluster: LocalCluster, request: Request
) -> tuple[list[int], int | None, float]:
    """All tokens, how many of the prompt's were cached, and the seconds to the first."""
    started = time.perf_counter()
    tokens: list[int] = []
    num_cached: int | None = None
    first_s = 0.0
    async for delta in cluster.frontend.generate(request):
        if not tokens:
            first_s, num_cached = time.perf_counter() - started, delta.num_cached_tokens
        tokens += delta.token_ids
    return tokens, num_cached, first_s


async def test_each_turn_begins_where_the_last_one_ended(demo_model_path: Path) -> None:
    engine = {"kv_cache_bytes": "512MiB", "max_tokens_per_step": 512, "max_model_len": 2048}
    config = config_of(demo_model_path, prefill=engine, decode=engine)
    reference = Reference(demo_model_path)
    first, *questions = random_prompts([430, 30, 700], vocab_size=VOCAB_SIZE)
    history = first
    async with LocalCluster(config, demo_model_path) as cluster:
        for turn, question in enumerate([[], *questions]):
            history = history + question
            fresh = request_of(history, NUM_TOKENS, request_id=f"{turn}f", cache_salt=f"{turn}")
            _, _, fresh_s = await first_token_and_rest(cluster, fresh)
            await until_idle(cluster)
            request = request_of(history, NUM_TOKENS, request_id=f"{turn}")
            tokens, num_cached, first_s = await first_token_and_rest(cluster, request)
            print(
                f"turn {turn}: {len(history)} tokens, {num_cached} found, first token after "
                f"{first_s * 1e3:.0f} ms, {fresh_s * 1e3:.0f} ms where all is computed"
            )
            expected = reference.generate(history, NUM_TOKENS)
            assert_equal_up_to_ties("Gemma 3 270M", [tokens], [expected])
            assert num_cached == (0 if turn == 0 else (len(history) - len(question) - 1) // 16 * 16)
            history = history + tokens
            await until_idle(cluster)
