"""Trace readers on small samples, and on whole files named in PDRAY_TEST_TRACES."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from pdray.workload.request import WorkloadRequest
from pdray.workload.trace import read_trace, scale_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-02-29 23:59:59.5000000,374,44
2024-03-01 00:00:00.2500001,396,109
2024-03-01 00:00:00,879,55
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 1030, "output_length": 20, "hash_ids": [0, 1, 7]}
{"timestamp": 4500, "input_length": 600, "output_length": 1, "hash_ids": [0, 9]}

"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_an_azure_trace_is_read_in_order_of_arrival_from_zero(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, "a.csv", AZURE))
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [
        (374, 44),
        (879, 55),
        (396, 109),
    ]
    assert [r.arrival_s for r in requests] == pytest.approx([0.0, 0.5, 0.7500001])


def test_a_mooncake_trace_keeps_its_prefixes(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path, "m.jsonl", MOONCAKE)) == [
        WorkloadRequest(arrival_s=0.0, prompt_tokens=1030, output_tokens=20, prefix_ids=(0, 1, 7)),
        WorkloadRequest(arrival_s=1.5, prompt_tokens=600, output_tokens=1, prefix_ids=(0, 9)),
    ]


def test_a_scaled_trace_is_faster_shorter_and_capped(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, "m.jsonl", MOONCAKE))
    scaled = scale_trace(
        requests, speed=3.0, length_factor=0.1, max_prompt_tokens=64, max_output_tokens=8
    )
    assert scaled == [
        WorkloadRequest(arrival_s=0.0, prompt_tokens=64, output_tokens=2),
        WorkloadRequest(arrival_s=0.5, prompt_tokens=60, output_tokens=1),
    ]


def test_prefixes_stay_where_only_time_is_scaled(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, "m.jsonl", MOONCAKE))
    assert [r.prefix_ids for r in scale_trace(requests, speed=2.0)] == [(0, 1, 7), (0, 9)]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "time,in,out\n1,2,3\n", "line 1: columns"),
        ("a.csv", AZURE + "2024-03-01 00:00:02,many,3\n", "line 5: .*many"),
        ("a.csv", AZURE + "2024-03-01 00:00:02\n", "line 5"),
        ("a.csv", AZURE.split("\n")[0] + "\n", "no requests"),
        ("m.jsonl", MOONCAKE + '{"timestamp": 1}\n', "line 4: KeyError 'input_length'"),
        ("m.jsonl", "[1, 2]\n", "line 1"),
        ("m.jsonl", "{\n", "line 1"),
        ("m.parquet", "", r"\.csv, \.jsonl"),
    ],
)
def test_a_bad_trace_is_refused_with_file_and_line(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        read_trace(write(tmp_path, name, text))
    assert name in str(caught.value)


REAL_TRACES = [Path(name) for name in os.environ.get("PDRAY_TEST_TRACES", "").split(":") if name]


@pytest.mark.skipif(not REAL_TRACES, reason="PDRAY_TEST_TRACES names no files")
def test_whole_traces_are_in_order_and_lose_no_line() -> None:
    for path in REAL_TRACES:
        requests = read_trace(path)
        assert len(requests) == len(path.read_text().splitlines()) - (path.suffix == ".csv")
        assert requests[0].arrival_s == 0.0
        assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(requests))
        assert all(r.prompt_tokens >= 1 and r.output_tokens >= 1 for r in requests)
