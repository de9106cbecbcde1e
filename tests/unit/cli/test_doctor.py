"""What ``pdray doctor`` prints, and the code that it ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pdray.cli.main import main
from pdray.serve.free_port import free_port


def write_config(tmp_path: Path, model: Path, **top: object) -> str:
    pool = {"role": "mixed", "node_groups": ["here"], "engine": {"kv_cache_bytes": "1MiB"}}
    data = {"model": str(model), "node_groups": {"here": {}}, "pools": {"all": pool}}
    path = tmp_path / "pdray.yaml"
    path.write_text(yaml.safe_dump(data | {"serve": {"port": free_port()}} | top))
    return str(path)


@pytest.mark.slow
def test_a_good_machine_is_exit_code_0_with_a_line_for_each_check(
    tmp_path: Path, tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", write_config(tmp_path, tiny_model_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "on this machine" in lines[0]
    headings = [line for line in lines[1:-1] if not line.startswith(" ")]
    assert headings == [
        "ports",
        "files",
        "GPUs",
        "memory",
        "shared memory",
        "transport",
        "RDMA",
    ]
    assert lines[2].startswith("  ok       serve.port: 127.0.0.1:")
    assert "error: 0" in lines[-1]


def test_an_error_is_exit_code_1_with_its_remedy_on_the_next_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, tmp_path / "nowhere", transfer={"transport": "loopback"})
    assert main(["doctor", path, "--node-group", "here"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "as one machine of node group here" in lines[0]
    (at,) = (index for index, line in enumerate(lines) if "error    model: " in line)
    assert lines[at + 1].startswith("           remedy: set model to ")
    assert "error: 2" in lines[-1]


def test_a_config_that_cannot_be_is_said_as_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: demo\npols: {}\n")
    assert main(["doctor", str(path)]) == 1
    assert "pols: unknown key; did you mean pools?" in capsys.readouterr().err
