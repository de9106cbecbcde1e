"""The event log of a live run, replayed in another process: every decision is the same."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdray.config import parse_config
from pdray.core.mode import Mode
from pdray.core.placement import Placement
from pdray.event_log.explain import explain
from pdray.event_log.segments import segments
from pdray.local import LocalCluster
from pdray.policy.placement import PLACEMENT
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle

REPLAY = """
import sys
from pathlib import Path
from pdray.event_log.replay import replay
for path in sys.argv[1:]:
    replayed = replay(Path(path))
    assert replayed.num_events > 0, path
    for difference in replayed.differences:
        print(difference)
"""


@pytest.mark.parametrize("policy", PLACEMENT.names())
async def test_a_live_run_is_decided_again_as_it_was(
    policy: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    data = config_of(tiny_model_path).model_dump(mode="json")
    data["pools"]["prefill"]["replicas"] = data["pools"]["decode"]["replicas"] = 2
    data["roles"] = {"prefill": {"min": 1, "max": 3}, "decode": {"min": 1, "max": 3}}
    data["slo"] = {"ttft_s": 0.01, "itl_s": 5.0}  # so that roles flip
    data["controller"] = {
        "placement": policy,
        "max_queued_requests": 4,
        "event_log": {"folder": str(tmp_path), "max_bytes": 2**20},
    }
    config = parse_config(data)
    prompts = random_prompts([40, 200, 300] * 8)
    async with LocalCluster(config, tiny_model_path) as cluster:
        for turn in range(3):
            requests = [
                request_of(prompt, request_id=f"r{turn}-{index}", session_id=f"s{index}")
                for index, prompt in enumerate(prompts)
            ]
            outcomes = await asyncio.gather(
                *(tokens_of(cluster, each) for each in requests), return_exceptions=True
            )
            assert any(isinstance(each, list) for each in outcomes)
        await until_idle(cluster)
    paths = segments(tmp_path)
    assert paths
    run = subprocess.run(
        [sys.executable, "-c", REPLAY, *map(str, paths)],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""
    (placed, *_) = explain(tmp_path, "r2-0")
    assert isinstance(placed.answer, Placement)
    assert placed.candidates
    assert config.mode is Mode.POOLED
