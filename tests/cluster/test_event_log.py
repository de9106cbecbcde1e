"""What the real controller wrote while it ran, until it was ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pdray.cli.main import main
from pdray.cluster.launch import down, up
from pdray.event_log.replay import replay
from pdray.event_log.segments import segments
from tests.cluster.conftest import ClusterFrontend, MakeConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


async def test_a_controllers_log_replays_and_explains_its_placements(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(controller={"event_log": {"folder": str(tmp_path)}})
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        for request_id in ("a", "b", "c"):
            await frontend.generate(request_id)
    await asyncio.to_thread(down, config)
    (path,) = segments(tmp_path)
    replayed = replay(path)
    assert replayed.num_events > 10
    assert replayed.differences == ()
    lines = path.read_bytes().splitlines()
    num_left = sum(line.startswith(b'{"event":"worker_left"') for line in lines)
    assert num_left == 2, "the end is not there"
    assert main(["explain", "b", "--log", str(tmp_path)]) == 0
    assert "what Cost chose from" in capsys.readouterr().out
