"""``pdray serve`` as a user runs it: a process that serves, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
import ray
import yaml

from pdray.cluster.names import NAMESPACE
from pdray.serve.free_port import free_port
from pdray.serve.keys import new_key
from tests.served import READY_TIMEOUT_S, STOP_TIMEOUT_S, Served, served
from tests.trace_collector import collecting

pytestmark = pytest.mark.ray


@pytest.fixture
def config_path(tmp_path: Path, tiny_model_path: Path) -> Path:
    engine = {"kv_cache_bytes": "16MiB", "max_model_len": 512, "num_threads": 1}
    pools = {
        role: {"role": role, "node_groups": ["here"], "engine": engine}
        for role in ("prefill", "decode")
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": str(tiny_model_path),
                "served_model_name": "tiny",
                "node_groups": {"here": {}},
                "pools": pools,
                "serve": {"port": free_port()},
            }
        )
    )
    return path


def complete(port: int, key: str = "none") -> httpx.Response:
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 8, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60.0)


def assert_nothing_left(server: Served) -> None:
    assert len(server.descendants) >= 3  # gcs_server, raylet and an actor at the least
    deadline = time.monotonic() + 15.0
    while server.left_over() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.left_over() == []
    with pytest.raises(httpx.TransportError):
        complete(server.port)


def test_it_serves_and_ctrl_c_leaves_no_process_and_no_span_unsent(
    config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with served(config_path) as server:
            line = server.ready_line()
            assert f"http://127.0.0.1:{server.port}" in line
            assert "curl" in line
            answer = complete(server.port)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 8
            assert server.stop(signal.SIGINT) == 0
            assert_nothing_left(server)
    names = [
        span.name
        for export in collector.exports
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {"POST /v1/completions", "queued", "prefill", "decode"} <= set(names)


def test_two_applications_with_keys_serve_together_and_leave_no_process(config_path: Path) -> None:
    folder, pooled = config_path.parent, yaml.safe_load(config_path.read_text())
    key, entry = new_key("acme")
    (folder / "keys.yaml").write_text(f"{entry.line}\n")
    (folder / "secret").write_text(os.urandom(32).hex())
    url = f"http://127.0.0.1:{pooled['serve']['port']}"
    of_phase = {
        "prefill": {"application": "apart-prefill", "route_prefix": "/prefill"},
        "decode": {"application": "apart-decode", "prefill_url": f"{url}/prefill"},
    }
    paths = []
    for phase, of_serve in of_phase.items():
        changes = {
            "mode": "service",
            "pools": {phase: pooled["pools"][phase]},
            "handles": {"secret_file": "secret"},
            "serve": pooled["serve"] | {"keys_file": "keys.yaml"} | of_serve,
        }
        paths.append(folder / f"{phase}.yaml")
        paths[-1].write_text(yaml.safe_dump(pooled | changes))
    with served(paths[0], str(paths[1])) as server:
        assert f"{url}/prefill/v1/prefill" in server.ready_line()
        assert f"{url}/v1/completions" in server.ready_line()
        assert complete(server.port).status_code == 401
        answer = complete(server.port, key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 8
        assert server.stop(signal.SIGINT) == 0
        assert_nothing_left(server)


def test_sigterm_while_workers_load_leaves_no_process(config_path: Path) -> None:
    with served(config_path) as server:
        server.wait_for_line("process started")
        assert server.stop(signal.SIGTERM) == 0
        assert_nothing_left(server)


def test_a_second_ctrl_c_leaves_no_process_either(config_path: Path) -> None:
    with served(config_path) as server:
        server.ready_line()
        server.look_at_processes()
        server.process.send_signal(signal.SIGINT)
        server.wait_for_line("stopping (Ctrl-C again")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(STOP_TIMEOUT_S) == 0
        assert_nothing_left(server)


def test_a_port_in_use_ends_it_before_ray_starts(config_path: Path) -> None:
    with socket.socket() as listener:
        port = yaml.safe_load(config_path.read_text())["serve"]["port"]
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with served(config_path) as server:
            assert server.process.wait(STOP_TIMEOUT_S) == 1
            assert f"serve.port = {port}" in server.log
            assert "Ray" not in server.log


def test_a_keys_file_that_is_not_there_ends_it_before_ray_starts(config_path: Path) -> None:
    data = yaml.safe_load(config_path.read_text())
    data["serve"]["keys_file"] = "keys.yaml"
    config_path.write_text(yaml.safe_dump(data))
    with served(config_path) as server:
        assert server.process.wait(STOP_TIMEOUT_S) == 1
        assert f"{config_path.parent / 'keys.yaml'}: cannot be read" in server.log
        assert "Ray" not in server.log


def test_a_model_that_cannot_be_served_is_told_and_leaves_no_process(
    config_path: Path, tmp_path: Path
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path / "t5"
    small = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    T5ForConditionalGeneration(small).save_pretrained(folder)
    data = yaml.safe_load(config_path.read_text())
    config_path.write_text(yaml.safe_dump(data | {"model": str(folder)}))
    with served(config_path) as server:
        server.wait_for_line("waiting for")
        assert server.process.wait(READY_TIMEOUT_S) == 1
        assert "failed: worker 0 of pool" in server.log
        assert "encoder-decoder" in server.log
        assert_nothing_left(server)


@ray.remote(num_cpus=0)
class Bystander:
    def ping(self) -> str:
        return "here"


def test_on_a_cluster_it_takes_down_what_it_started_and_nothing_else(
    local_ray: None, config_path: Path
) -> None:
    bystander = Bystander.options(name="bystander").remote()
    assert ray.get(bystander.ping.remote()) == "here"
    address = ray.get_runtime_context().gcs_address
    with served(config_path, "--address", address) as server:
        server.ready_line()
        answer = complete(server.port)
        assert answer.status_code == 200, answer.text
        assert server.stop(signal.SIGINT) == 0
    assert ray.get(bystander.ping.remote()) == "here"
    named = ray.util.list_named_actors(all_namespaces=True)
    assert [actor["name"] for actor in named if actor["namespace"] == NAMESPACE] == []
    assert "SERVE_CONTROLLER_ACTOR" not in {actor["name"] for actor in named}
    ray.kill(bystander)
