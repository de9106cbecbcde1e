"""What a benchmark leaves behind: its findings with the machine and the arguments, dated."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import describe_machine


def save_result(name: str, arguments: argparse.Namespace, **findings: object) -> Path:
    """Into ``arguments.output_dir``, made where it is not there. Of paths among the arguments only
    the names are kept: where they lie is no part of what was measured."""
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}.json"
    content = {
        "machine": asdict(describe_machine()),
        "arguments": {key: _written(value) for key, value in vars(arguments).items()},
        **findings,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _written(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)
