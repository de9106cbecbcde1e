"""Ray with its real autoscaler on a cloud that is this machine: its nodes are raylets that come and
go as processes (Ray's fake multi-node provider)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from pdray.serve.free_port import free_port

OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
"""For the head and who joins it: a token that lies in the user's folder is for other clusters."""

_START_TIMEOUT_S = 60.0


@contextlib.contextmanager
def fake_cloud(node_types: Mapping[str, Mapping[str, float]], max_nodes: int) -> Iterator[str]:
    """A head with one CPU, and up to ``max_nodes`` of each of ``node_types``, by its resources.
    Gives the address; ends every process at the end."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="pdray-cloud-"))
    address = f"{_own_ip()}:{port}"
    config = folder / "cluster.json"
    config.write_text(json.dumps(_cluster_config(node_types, max_nodes, address)))
    environment = os.environ | OPEN | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *(f"--port={port}", "--num-cpus=1", "--include-dashboard=false"),
            *(f"--autoscaling-config={config}", f"--temp-dir={folder / 'ray'}"),
            f"--object-store-memory={100 * 2**20}",
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(head, folder / "head.log")
        yield address
    finally:
        _end_all(head)
        log.close()


def _cluster_config(
    node_types: Mapping[str, Mapping[str, float]], max_nodes: int, address: str
) -> dict[str, object]:
    """Ray's own example of it is not in its wheel."""
    kinds: dict[str, object] = {
        name: {
            "resources": dict(resources) | {"object_store_memory": 80 * 2**20},
            "labels": {"kind": name},
            "node_config": {},
            "min_workers": 0,
            "max_workers": max_nodes,
        }
        for name, resources in node_types.items()
    }
    kinds["ray.head.default"] = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake_multinode",
        "max_workers": max_nodes * len(node_types),
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "auth": {},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def _own_ip() -> str:
    import ray._private.services

    return str(ray._private.services.get_node_ip_address())


def _wait_for(head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while b"Ray runtime started" not in log.read_bytes():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _end_all(head: subprocess.Popen[bytes]) -> None:
    """The head's own end would leave the nodes behind: all are its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(10)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    head.kill()
    head.wait()
