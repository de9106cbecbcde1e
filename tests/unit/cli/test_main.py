"""The command line: what it takes, what it answers, how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pdray import __version__
from pdray.cli.main import main, parser
from pdray.cli.serve import configs_of, ready_line
from pdray.serve.free_port import free_port

DEMO = str(Path(__file__).parents[3] / "configs" / "demo.yaml")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pdray {__version__}\n"


def test_help_names_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pdray", "--help"], capture_output=True, text=True, check=True
    )
    assert "serve" in done.stdout
    assert "batch" in done.stdout
    assert "doctor" in done.stdout


def test_spans_that_cannot_be_sent_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    config = Path(DEMO).read_text().replace("8000", str(free_port()))
    (tmp_path / "demo.yaml").write_text(config)
    assert main(["serve", str(tmp_path / "demo.yaml")]) == 1
    assert "OTEL_TRACES_EXPORTER = 'zipkin': accepted: otlp, none" in capsys.readouterr().err


def test_a_bad_config_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: demo\npols: {}\n")
    assert main(["serve", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pdray: {path}: ")
    assert "pols: unknown key; did you mean pools?" in captured.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--enable-lora", "LoRA adapters are not supported"),
        ("--lora-modules=a=b", "LoRA adapters are not supported"),
        ("--speculative-config", "speculative decoding is not supported"),
        ("--limit-mm-per-prompt", "multimodal input is not supported"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
    ],
)
def test_options_that_are_not_known_are_refused(
    option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", DEMO, option])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert option in captured.err


def test_a_missing_config_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere.yaml"]) == 1
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err


def test_host_and_port_go_over_the_config() -> None:
    (config,) = configs_of(parser().parse_args(["serve", DEMO, "--port", "8123", "--host", "::1"]))
    assert (config.serve.host, config.serve.port) == ("::1", 8123)
    (config,) = configs_of(parser().parse_args(["serve", DEMO]))
    assert (config.serve.host, config.serve.port) == ("127.0.0.1", 8000)


def test_a_port_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", DEMO, "--port", "99999"]) == 1
    assert "serve.port = 99999" in capsys.readouterr().err


def test_the_ready_line_has_the_url_and_a_curl_to_try() -> None:
    line = ready_line(*configs_of(parser().parse_args(["serve", DEMO, "--port", "8123"])))
    assert "\n" not in line
    assert "http://127.0.0.1:8123" in line
    assert "curl http://127.0.0.1:8123/v1/completions" in line
    assert '"model": "gemma-3-270m"' in line
