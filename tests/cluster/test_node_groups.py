"""Nodes that come and go under the pools, with Ray's real autoscaler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.fake_cloud import OPEN, fake_cloud

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_both_pools_move_in_opposite_directions_and_nodes_of_their_groups_with_them(
    tiny_model_path: Path,
) -> None:
    kinds = {"fast": {"CPU": 1, "fast": 1}, "large": {"CPU": 1, "large": 1}}
    with fake_cloud(kinds, max_nodes=2) as address:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.cluster.opposite_directions"),
                *(address, str(tiny_model_path)),
            ],
            cwd=ROOT,
            env=os.environ | OPEN,
            stdout=subprocess.PIPE,
            timeout=270,
            check=True,
        )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["at first"] == {"fast": 0, "large": 0}
    assert seen["prompts"]["nodes"] == {"fast": 2, "large": 1}
    assert seen["answers"]["ready"] == {"prefill": 1, "decode": 2}
    assert seen["after"] == {"fast": 1, "large": 2}
    assert seen["prompts"]["num_answers"] > 8
    assert seen["answers"]["num_answers"] >= 8
