"""The same prompts give the same tokens however their phases meet."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdray.config import PdrayConfig, parse_config
from pdray.core.mode import Mode
from pdray.local import LocalCluster
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle

PROMPTS = random_prompts([1, 16, 65, 200, 300])
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def expected(tiny_model_path: Path) -> list[list[int]]:
    """transformers' own greedy tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)
    return [
        model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            min_new_tokens=MAX_TOKENS,
            max_new_tokens=MAX_TOKENS,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


def mixed(model_path: Path, mode: Mode) -> PdrayConfig:
    """Two workers that do both phases."""
    data = config_of(model_path).model_dump(mode="json")
    pool = data["pools"]["decode"] | {"role": "mixed", "replicas": 2}
    changes = {"mode": mode.value, "pools": {"mixed": pool}, "controller": {"placement": "cost"}}
    return parse_config(data | changes)


def config_in(mode: Mode, model_path: Path) -> PdrayConfig:
    if mode is Mode.POOLED:
        return config_of(model_path, controller={"placement": "cost"})
    return mixed(model_path, mode)


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.POOLED, Mode.AUTO])
async def test_tokens_are_those_of_transformers_alone_and_together(
    mode: Mode, tiny_model_path: Path, expected: list[list[int]]
) -> None:
    async with LocalCluster(config_in(mode, tiny_model_path), tiny_model_path) as cluster:
        alone = [
            await tokens_of(cluster, request_of(prompt, MAX_TOKENS, request_id=f"a{i}"))
            for i, prompt in enumerate(PROMPTS)
        ]
        together = await asyncio.gather(
            *(
                tokens_of(cluster, request_of(prompt, MAX_TOKENS, request_id=f"t{i}"))
                for i, prompt in enumerate(PROMPTS)
            )
        )
        assert alone == expected
        assert together == expected
        await until_idle(cluster)


async def test_in_mode_soft_both_workers_work_and_no_kv_moves(tiny_model_path: Path) -> None:
    config = mixed(tiny_model_path, Mode.SOFT)
    async with LocalCluster(config, tiny_model_path) as cluster:
        requests = [
            request_of(p, request_id=str(i)) for i, p in enumerate(random_prompts([90] * 6))
        ]
        await asyncio.gather(*(tokens_of(cluster, request) for request in requests))
        for worker in cluster.workers_of("mixed"):
            assert b"pdray_kv_transfer_bytes_total{" not in worker.metrics_text()
            assert worker.snapshot().prefix_query_tokens > 0


async def test_a_short_prompt_is_computed_where_it_is_decoded_and_a_long_one_is_not(
    tiny_model_path: Path,
) -> None:
    """In mode pooled, once it is known how long steps take; what fits in a step depends on the
    target."""
    slow_steps = {"slo": {"itl_s": 0.0001}}  # not even one decode keeps to it: nothing fits
    for changes, is_together in (({}, True), (slow_steps, False)):
        config = config_of(tiny_model_path, controller={"placement": "cost"}, **changes)
        async with LocalCluster(config, tiny_model_path) as cluster:
            for i, prompt in enumerate(random_prompts([40] * 16, seed=1)):
                await tokens_of(cluster, request_of(prompt, request_id=f"warm{i}"))
            await asyncio.sleep(0.2)  # until the controller has heard of it
            (decode,) = cluster.workers_of("decode")
            before = decode.engine.prefix_cache.num_query_tokens
            (prompt,) = random_prompts([40], seed=2)
            await tokens_of(cluster, request_of(prompt, request_id="short"))
            num_looked_up = decode.engine.prefix_cache.num_query_tokens - before
            assert (num_looked_up >= len(prompt)) is is_together
