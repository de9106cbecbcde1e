"""Runs one of ``benchmarks.engine_peers`` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEER_TIMEOUT_S = 900.0


def run_peer(
    python: str, peer: str, model: Path, dtype: str, num_threads: int, *arguments: str
) -> list[dict[str, Any]]:
    """What it reported; or ends the benchmark with what it printed. vLLM runs in its own
    environment: ``python`` is an interpreter that has it."""
    command = [python, "-m", "benchmarks.engine_peers", "--peer", peer, "--model", str(model)]
    command += ["--dtype", dtype, "--threads", str(num_threads), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PEER_TIMEOUT_S,
    )
    if done.returncode != 0:
        sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
