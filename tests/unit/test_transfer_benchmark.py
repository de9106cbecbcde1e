"""Real processes, small blocks: what `benchmarks/transfer.py` reports is what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.transfer import main


def test_each_way_and_size_is_measured_and_its_bytes_checked(tmp_path: Path) -> None:
    ways = ["pdray", "nixl", "nixl-push", "memcpy"]
    arguments = ["--ways", *ways, "--ucx-tls", "tcp,self", "--num-blocks", "1", "3"]
    arguments += ["--block-bytes", "4096", "--seconds", "0.01", "--output-dir"]
    assert main([*arguments, str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    findings = json.loads(path.read_text())["findings"]
    cases = [(f["way"], f["ucx_tls"], f["num_bytes"]) for f in findings]
    assert cases == [
        (way, "-" if way == "memcpy" else "tcp,self", num_blocks * 4096)
        for way in ways
        for num_blocks in (1, 3)
    ]
    assert all(f["p50_s"] <= f["p99_s"] and f["bytes_per_s"] > 0 for f in findings)
