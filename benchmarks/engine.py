"""Engines alone, one after the other on the same cores, against what the machine can do.

    python -m benchmarks.engine --threads 1 2
    python -m benchmarks.engine --vllm ~/vllm/bin/python --dtype float32 bfloat16

Every engine runs in a process of its own; a step's limit is the longer of the time to read its
bytes and the time to do its operations (benchmarks/engine_peers/limits.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine_peers.__main__ import PEERS
from benchmarks.engine_peers.cases import CASES
from benchmarks.machine import describe_machine
from benchmarks.peer_process import run_peer

Findings = dict[str, dict[str, float]]
"""Seconds by peer and case; the limits' rates too."""


def main() -> None:
    args = parse_args()
    model = model_path(args.model)
    console = Console()
    runs = []
    for dtype in args.dtype:
        for num_threads in args.threads:
            findings: Findings = {}
            for peer in args.peers:
                console.print(f"{dtype}, {num_threads} threads: {peer}")
                python = args.vllm if peer == "vllm" else sys.executable
                found = run_peer(python, peer, model, dtype, num_threads)
                findings[peer] = {each["case"]: each["seconds"] for each in found}
            console.print(table_of(findings, f"{dtype}, {num_threads} threads"))
            runs.append({"dtype": dtype, "num_threads": num_threads, "findings": findings})
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = args.output_dir / f"engine-{stamp}.json"
        report = {"machine": asdict(describe_machine()), "model": args.model, "runs": runs}
        path.write_text(json.dumps(report, indent=2))
        console.print(f"wrote {path}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="a local folder, or the demo model")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vLLM for CPU")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: all there are")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    args = parser.parse_args()
    if args.peers is None:
        args.peers = [peer for peer in PEERS if peer != "vllm" or args.vllm]
    if "vllm" in args.peers and not args.vllm:
        parser.error("--peers vllm: also needs --vllm PYTHON")
    return args


def model_path(model: str) -> Path:
    from pdray.model_source import resolve_model

    return resolve_model(model, print)


def table_of(findings: Findings, title: str) -> Table:
    table = Table(title=f"{title}: tokens/s (share of the limit)")
    table.add_column("engine")
    for case in CASES:
        table.add_column(case.name, justify="right")
    limits = findings.get("limits", {})
    for peer, seconds in findings.items():
        cells = []
        for case in CASES:
            rate = f"{case.num_tokens / seconds[case.name]:,.1f}"
            if case.name in limits and peer != "limits":
                rate += f" ({limits[case.name] / seconds[case.name]:.0%})"
            cells.append(rate)
        table.add_row(peer, *cells)
    return table


if __name__ == "__main__":
    main()
