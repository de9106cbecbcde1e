"""The check of the GPU paths, run in small on the CPU: the script itself works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import check


@pytest.mark.slow
def test_runs_on_a_cpu_and_writes_its_figures(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    arguments = ["--device", "cpu", "--attention", "sdpa", "--output-dir", str(tmp_path)]
    assert check.main(arguments) == 0
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert {each["model"] for each in results["correctness"]} == set(check.MODELS)
    assert all(each["is_good"] for each in results["correctness"])
    assert [each["name"].partition(",")[0] for each in results["figures"]] == [
        "decode",
        "decode",
        "prefill",
    ]
    assert all(each["tokens_per_s"] > 0 for each in results["figures"])


def test_takes_no_figure_after_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(check.figures(_NoLlama(), (1, 8), ends_at=0.0)) == []  # type: ignore[arg-type]
    assert capsys.readouterr().out == "out of time: 3 figures are not taken\n"


class _NoLlama:
    def prefill(self) -> None:
        raise AssertionError("it was run")
