"""``pdray batch`` as a user runs it: alone, interrupted and run again, and as a Ray job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 200.0
NUM_LINES = 40

JOB_SCRIPT = """
import subprocess, sys, time, psutil, ray
from ray.util import list_named_actors
context = ray.init(
    address="local", num_cpus=4, include_dashboard=True, dashboard_port=0, log_to_driver=False,
    object_store_memory=128 * 2**20, _temp_dir=sys.argv[1],
)
command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
command += ["--address", f"http://{context.dashboard_url}", "--", *sys.argv[2:]]
deadline = time.monotonic() + 90
while True:
    done = subprocess.run(command, capture_output=True, text=True)
    is_early = "No available agent" in done.stderr  # it starts after Ray itself
    if not is_early or time.monotonic() > deadline:
        break
    time.sleep(1.0)
print(done.stdout, done.stderr)
actors = list_named_actors(all_namespaces=True)
print("left:", [actor["name"] for actor in actors if actor["namespace"] == "pdray"])
while [
    process for process in psutil.Process().children(recursive=True)
    if any(kind in " ".join(process.cmdline()) for kind in ("WorkerActor", "ControllerActor"))
]:
    time.sleep(0.1)
print("no process left")
ray.shutdown()
sys.exit(done.returncode)
"""


class Batch:
    """A batch of short requests for a tiny model."""

    def __init__(self, folder: Path, model_path: Path, max_tokens: int) -> None:
        self.config = folder / "tiny.yaml"
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        engine = {"kv_cache_bytes": "16MiB", "max_model_len": 1024, "num_threads": 1}
        data = {
            "model": str(model_path),
            "served_model_name": "tiny",
            "node_groups": {"here": {}},
            "pools": {
                role: {"role": role, "node_groups": ["here"], "engine": engine}
                for role in ("prefill", "decode")
            },
        }
        self.config.write_text(yaml.safe_dump(data))
        body = {"model": "tiny", "prompt": "Hi", "max_tokens": max_tokens, "ignore_eos": True}
        lines = [
            {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}
            for i in range(NUM_LINES)
        ]
        self.input.write_text("".join(json.dumps(line) + "\n" for line in lines))

    @property
    def command(self) -> list[str]:
        files = ["--input", str(self.input), "--output", str(self.output)]
        return [sys.executable, "-m", "pdray", "batch", str(self.config), *files]

    def answered(self) -> list[str]:
        if not self.output.exists():
            return []
        # Not splitlines(): it also breaks at characters that a model may have written.
        *lines, _unfinished = self.output.read_text().split("\n")
        return [json.loads(line)["custom_id"] for line in lines]


MakeBatch = Callable[[int], Batch]


@pytest.fixture
def make_batch(tmp_path: Path, tiny_model_path: Path) -> MakeBatch:
    return lambda max_tokens: Batch(tmp_path, tiny_model_path, max_tokens)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_an_interrupted_batch_goes_on_where_it_was(make_batch: MakeBatch) -> None:
    batch = make_batch(200)
    command = [*batch.command, "--max-in-flight", "4"]
    first = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + TIMEOUT_S
    while len(batch.answered()) < 5:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, log = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 130, log
    before = batch.answered()
    assert 5 <= len(before) < NUM_LINES
    second = run(batch.command)
    assert second.returncode == 0, second.stderr
    answered = batch.answered()
    assert answered[: len(before)] == before
    assert sorted(answered) == sorted(f"r{i}" for i in range(NUM_LINES))
    assert f"{NUM_LINES - len(before)} answered, 0 failed, {len(before)} were there" in (
        second.stderr
    )


def test_it_runs_unchanged_as_a_ray_job(make_batch: MakeBatch) -> None:
    """Before any test that starts the session's own Ray, whose agent has the one port that a job's
    agent listens on."""
    batch = make_batch(8)
    ray_folder = Path(f"/tmp/pdray-job-{os.getpid()}")  # sockets in it: the path must be short
    command = [sys.executable, "-c", JOB_SCRIPT, str(ray_folder), *batch.command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    shutil.rmtree(ray_folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left: []" in done.stdout
    assert "no process left" in done.stdout
    assert sorted(batch.answered()) == sorted(f"r{i}" for i in range(NUM_LINES))
