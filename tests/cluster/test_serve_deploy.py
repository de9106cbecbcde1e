"""Ray Serve's own tools with the shipped ``configs/serve.yaml``: deploy, ask, shut down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pdray.serve.free_port import free_port
from tests.served import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = """
import subprocess, sys, time
import httpx, ray
from ray.util import list_named_actors

folder, deploy_file, port = sys.argv[1:]
context = ray.init(
    address="local", num_cpus=4, include_dashboard=True, dashboard_port=0, log_to_driver=False,
    object_store_memory=128 * 2**20, _temp_dir=folder,
)
dashboard = f"http://{context.dashboard_url}"

def actors():
    return [a["name"] for a in list_named_actors(all_namespaces=True) if a["namespace"] == "pdray"]

def serve(*words):
    command = [sys.executable, "-m", "ray.serve.scripts", *words, "--address", dashboard]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

def until(is_so):
    while not is_so():
        time.sleep(0.5)

def answers():
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False

until(lambda: serve("deploy", deploy_file)[0] == 0)
until(answers)
body = {"model": "tiny", "prompt": "Hello", "max_tokens": 8, "ignore_eos": True}
answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60.0)
print("usage:", answer.json()["usage"])
print("actors:", len(actors()))
print(serve("shutdown", "-y"))
until(lambda: not actors())
print("gone")
ray.shutdown()
"""


def test_serve_deploy_serves_and_after_serve_shutdown_no_actor_stays(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    engine = {"kv_cache_bytes": "16MiB", "max_model_len": 512, "num_threads": 1}
    pools = {
        role: {"role": role, "node_groups": ["here"], "engine": engine}
        for role in ("prefill", "decode")
    }
    config = {
        "model": str(tiny_model_path),
        "served_model_name": "tiny",
        "node_groups": {"here": {}},
        "pools": pools,
        "controller": {"unused_exit_s": 5},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    deploy = yaml.safe_load((ROOT / "configs/serve.yaml").read_text())
    deploy["http_options"]["port"] = free_port()
    deploy["applications"][0]["args"]["config"] = str(tmp_path / "tiny.yaml")
    deploy_file = tmp_path / "serve.yaml"
    deploy_file.write_text(yaml.safe_dump(deploy))

    ray_folder = f"/tmp/pdray-deploy-{os.getpid()}"  # sockets in it: the path must be short
    arguments = [ray_folder, str(deploy_file), str(deploy["http_options"]["port"])]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_SERVE_ENABLE_HA_PROXY": "1"},
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    shutil.rmtree(ray_folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'completion_tokens': 8" in done.stdout
    assert "actors: 3" in done.stdout
    assert "gone" in done.stdout
