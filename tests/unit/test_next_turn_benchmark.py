"""The benchmark of next turns, small: one run of it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import next_turn


def test_a_run_pulls_every_history_and_writes_what_it_found(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", str(tiny_model_path), "--kv-cache-bytes", "4MiB", "--repeats", "2"]
    command += ["--history-tokens", "100", "200", "--new-tokens", "10"]
    assert next_turn.main([*command, "--output-dir", str(tmp_path)]) == 0
    assert "all computed" in capsys.readouterr().out
    (path,) = tmp_path.glob("next_turn-*.json")
    turns = json.loads(path.read_text())["turns"]
    assert [turn["pulled_tokens"] for turn in turns] == [96, 192]
    assert all(turn["pulled_s"] > 0 and turn["computed_s"] > 0 for turn in turns)
