"""What the other benchmarks read: metrics of a server, processes of a command, stamps."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
import uuid
from bisect import bisect_left
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from benchmarks.handoff import compare
from benchmarks.http_overhead import delays_us, measure
from benchmarks.processes import (
    MARK,
    Process,
    cores_by_kind,
    kind_of,
    marked_processes,
    parse_stat,
)
from benchmarks.scrape import Scrape, bucket_quantile
from benchmarks.stamped_api import make_pdray_api, make_plain_api, save_stamp_tokenizer
from pdray.metrics.buckets import TRANSFER_BUCKETS_S
from pdray.metrics.exposition import merge_expositions
from pdray.metrics.prometheus import WorkerMetrics


def scrape_of(*workers: WorkerMetrics) -> Scrape:
    return Scrape.parse(merge_expositions(worker.text() for worker in workers).decode())


def pull(worker: WorkerMetrics, num_bytes: int, *, is_hidden: bool) -> None:
    worker.transfer_finished(
        0.001,
        queued_s=0.0,
        transport="nixl",
        source_pool="prefill",
        num_blocks=num_bytes // 100,
        num_bytes=num_bytes,
        is_hidden=is_hidden,
    )


def test_only_what_came_between_two_scrapes_counts_over_all_workers() -> None:
    first, second = WorkerMetrics("d1", "decode"), WorkerMetrics("d2", "decode")
    first.handoff_finished(20.0)
    pull(first, 5000, is_hidden=False)
    before = scrape_of(first, second)
    first.handoff_finished(0.004)
    second.handoff_finished(0.008)
    pull(first, 900, is_hidden=True)
    pull(second, 300, is_hidden=False)
    found = compare(before, scrape_of(first, second), num_words=10, prompt_tokens=11.0)
    assert found.num_handoffs == 2
    assert found.mean_s == pytest.approx(0.006)
    assert found.p50_s is not None
    assert found.p50_s <= 0.004
    assert found.p99_s is not None
    assert 0.0075 <= found.p99_s <= 0.01
    assert (found.transfer_bytes, found.transfer_blocks) == (1200, 12)
    assert found.hidden_share == pytest.approx(0.75)


def test_without_a_transfer_there_is_no_share_and_no_percentile() -> None:
    worker = WorkerMetrics("d1", "decode")
    found = compare(scrape_of(worker), scrape_of(worker), num_words=1, prompt_tokens=1.0)
    assert (found.p50_s, found.mean_s, found.hidden_share) == (None, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_a_bucket_quantile_lies_in_the_bucket_of_the_exact_one(seed: int) -> None:
    rng = random.Random(seed)
    worker = WorkerMetrics("d1", "decode")
    before = scrape_of(worker)
    values = sorted(rng.lognormvariate(-5, 1.5) for _ in range(rng.randint(1, 300)))
    for value in values:
        worker.handoff_finished(value)
    buckets = scrape_of(worker).buckets_since(before, "pdray_handoff_seconds")
    bounds = [0.0, *TRANSFER_BUCKETS_S]
    for share in (0.5, 0.9, 0.99, 1.0):
        exact = next(v for i, v in enumerate(values, start=1) if i >= share * len(values))
        place = bisect_left(bounds, exact)
        found = bucket_quantile(buckets, share)
        assert found is not None
        assert bounds[place - 1] <= found <= bounds[place]


def test_values_past_the_last_bound_are_that_bound() -> None:
    assert bucket_quantile([(1.0, 0.0), (2.0, 1.0), (float("inf"), 4.0)], 0.9) == 2.0


SPAWN_ORPHAN = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
"""


def test_marked_processes_are_found_after_their_parent_has_gone() -> None:
    mark = uuid.uuid4().hex
    subprocess.run([sys.executable, "-c", SPAWN_ORPHAN], env={**os.environ, MARK: mark}, check=True)
    # It is there, but may not have its own environment yet.
    while not (orphans := marked_processes(mark)):
        pass
    (orphan,) = orphans
    os.kill(orphan.pid, 9)
    while marked_processes(mark):
        pass
    assert marked_processes(uuid.uuid4().hex) == []


def test_a_stat_line_is_read_past_a_name_with_brackets() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = f"42 (a) b)) S 1 42 42 0 -1 0 0 0 0 0 {3 * ticks} {2 * ticks} 0 0 20 0"
    assert parse_stat(line) == ("S", 5.0)


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        ("ray::ServeReplica:pdray:Ingress.handle_request", "ray::ServeReplica:pdray:Ingress"),
        ("ray::IDLE", "ray::IDLE"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp", "ray raylet"),
        ("/x/gcs_server --log_dir=/tmp", "ray gcs"),
        ("/x/bin/haproxy -W -f /tmp/haproxy.cfg", "haproxy"),
        ("python -m pdray serve configs/demo.yaml", "pdray serve"),
        ("sleep 5", "sleep"),
    ],
)
def test_processes_are_named_by_what_they_are(command_line: str, kind: str) -> None:
    assert kind_of(command_line) == kind


def test_cpu_time_is_added_up_by_kind_and_starts_count_in_full() -> None:
    before = [Process(pid=1, kind="a", cpu_s=5.0), Process(pid=2, kind="b", cpu_s=1.0)]
    after = [
        Process(pid=1, kind="a", cpu_s=6.0),
        Process(pid=2, kind="b", cpu_s=4.0),
        Process(pid=3, kind="a", cpu_s=1.0),
    ]
    assert cores_by_kind(before, after, 10.0) == {"b": 0.3, "a": 0.2}


def test_stamps_tell_their_age_also_past_the_wrap() -> None:
    assert delays_us("0000100000002000", 2500) == [1500, 500]
    assert delays_us("99999990", 15) == [25]


@pytest.mark.parametrize("kind", ["plain", "pdray"])
def test_every_stamp_of_every_stream_arrives(kind: str, tmp_path: Path) -> None:
    api: FastAPI
    if kind == "plain":
        api = make_plain_api(0.001)
    else:
        save_stamp_tokenizer(tmp_path)
        api = make_pdray_api(0.001, tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        found = asyncio.run(measure(url, num_streams=3, num_stamps=15, interval_s=0.001))
    finally:
        server.force_exit = server.should_exit = True
        thread.join()
        listener.close()
    assert found.count == 45
