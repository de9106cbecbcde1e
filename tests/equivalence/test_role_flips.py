"""Workers that change their role under load: every answer is what it would have been."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from pdray.config import parse_config
from pdray.core.snapshot import Role
from pdray.local import LocalCluster
from pdray.policy.roles import RoleFlip
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle


async def test_a_decode_worker_that_becomes_a_prefill_worker_loses_nothing(
    tiny_model_path: Path,
) -> None:
    data = config_of(tiny_model_path, decode={"max_batch_size": 64}).model_dump(mode="json")
    data["pools"]["decode"]["replicas"] = 2
    data["roles"] = {"prefill": {"min": 1, "max": 2}, "decode": {"min": 1, "max": 2}}
    data["slo"] = {"ttft_s": 0.001, "itl_s": 5.0}  # any queue at all is one too long
    prompts = random_prompts([300] * 12)
    async with LocalCluster(parse_config(data), tiny_model_path) as cluster:
        calm = [
            await tokens_of(cluster, request_of(prompt, request_id=f"calm{i}"))
            for i, prompt in enumerate(prompts)
        ]
        flips: list[RoleFlip] = []

        async def ask_until_a_flip(index: int) -> None:
            for number in itertools.count():
                if flips:
                    return
                salt = f"{index}-{number}"
                request = request_of(prompts[index], request_id=salt, cache_salt=salt)
                assert await tokens_of(cluster, request) == calm[index]
                flips.extend(cluster.plane.take_role_flips())

        async with asyncio.timeout(60):
            await asyncio.gather(*map(ask_until_a_flip, range(len(prompts))))
        assert flips[0].role is Role.PREFILL
        again = [request_of(p, request_id=f"z{i}", cache_salt="z") for i, p in enumerate(prompts)]
        answers = await asyncio.gather(*(tokens_of(cluster, each) for each in again))
        assert list(answers) == calm
        (flipped,) = [w for w in cluster.workers if w.config.worker_id == flips[0].worker_id]
        assert flipped.config.pool == "decode"
        assert len(cluster.plane.fleet.ready(Role.PREFILL)) == 2
        await until_idle(cluster)
