"""Readers for published traces: arrivals and lengths of real services.

Azure's LLM inference traces are CSV (``TIMESTAMP,ContextTokens,GeneratedTokens``), Mooncake's
are JSON lines (``timestamp`` in milliseconds, ``input_length``, ``output_length``,
``hash_ids``). Both become requests in order of arrival, the first at 0.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pdray.workload.arrivals import scaled_arrivals
from pdray.workload.lengths import scaled_length
from pdray.workload.request import WorkloadRequest

AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
MOONCAKE_BLOCK_TOKENS = 512


def read_trace(path: Path) -> list[WorkloadRequest]:
    """Tells the format by the name: ``.csv`` is Azure's, ``.jsonl`` is Mooncake's. Raises
    ValueError that names the file and line for anything that is neither."""
    readers = {".csv": read_azure, ".jsonl": read_mooncake}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a trace's name ends in one of {', '.join(readers)}")
    with path.open(newline="", encoding="utf-8") as lines:
        try:
            requests = list(readers[path.suffix](lines))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not requests:
        raise ValueError(f"{path}: the trace has no requests")
    requests.sort(key=lambda request: request.arrival_s)
    return scale_trace(requests)


def read_azure(lines: Iterable[str]) -> Iterator[WorkloadRequest]:
    """Arrivals are seconds of the trace's own clock."""
    rows = csv.DictReader(lines)
    if rows.fieldnames is None or not set(AZURE_COLUMNS) <= set(rows.fieldnames):
        raise ValueError(f"line 1: columns {rows.fieldnames}, expected {AZURE_COLUMNS}")
    for row in rows:
        try:
            yield WorkloadRequest(
                arrival_s=_azure_seconds(row["TIMESTAMP"]),
                prompt_tokens=int(row["ContextTokens"]),
                output_tokens=int(row["GeneratedTokens"]),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"line {rows.line_num}: {error}") from error


def read_mooncake(lines: Iterable[str]) -> Iterator[WorkloadRequest]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield WorkloadRequest(
                arrival_s=float(row["timestamp"]) / 1000,
                prompt_tokens=int(row["input_length"]),
                output_tokens=int(row["output_length"]),
                prefix_ids=tuple(int(hash_id) for hash_id in row.get("hash_ids", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number}: {type(error).__name__} {error}") from error


def scale_trace(
    requests: Sequence[WorkloadRequest],
    *,
    speed: float = 1.0,
    length_factor: float = 1.0,
    max_prompt_tokens: int = 10**9,
    max_output_tokens: int = 10**9,
) -> list[WorkloadRequest]:
    """The same requests ``speed`` times as fast, lengths times ``length_factor`` and capped;
    no length falls below 1. Prefix ids are dropped where lengths change, as they no longer fit."""
    arrivals_s = scaled_arrivals((request.arrival_s for request in requests), speed)
    scaled = []
    for request, arrival_s in zip(requests, arrivals_s, strict=True):
        prompt_tokens = scaled_length(request.prompt_tokens, length_factor, 1, max_prompt_tokens)
        is_same = prompt_tokens == request.prompt_tokens
        scaled.append(
            replace(
                request,
                arrival_s=arrival_s,
                prompt_tokens=prompt_tokens,
                output_tokens=scaled_length(
                    request.output_tokens, length_factor, 1, max_output_tokens
                ),
                prefix_ids=request.prefix_ids if is_same else (),
            )
        )
    return scaled


def _azure_seconds(text: str) -> float:
    # Seven digits of a second: more than datetime takes, so the fraction is read apart.
    whole, _, fraction = text.partition(".")
    seconds = (datetime.fromisoformat(whole) - datetime(2000, 1, 1)).total_seconds()
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)
