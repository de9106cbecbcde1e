"""One scrape shows everybody, and waits for nobody long."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdray.cluster.launch import up
from tests.cluster.conftest import ClusterFrontend, MakeConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def samples_of(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Raises where a family or a sample is there twice."""
    families = list(text_string_to_metric_families(text.decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def label_values(text: bytes, label: str) -> set[str]:
    return {dict(labels)[label] for _, labels in samples_of(text) if label in dict(labels)}


async def test_a_scrape_of_any_frontend_shows_all_and_a_hung_worker_does_not_hang_it(
    make_config: MakeConfig,
) -> None:
    config = make_config()
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as one, ClusterFrontend(config) as other:
        await one.generate("a")
        status = await one.client.status()
        worker_ids = {worker.worker_id for worker in status.workers}
        both = {one.frontend.frontend_id, other.frontend.frontend_id}
        while label_values(await other.client.metrics_text(), "replica") != both:
            await asyncio.sleep(0.1)
        text = await other.client.metrics_text()
        assert label_values(text, "worker_id") == worker_ids
        ready = ("pdray_num_workers", frozenset({("pool", "decode"), ("state", "ready")}))
        assert samples_of(text)[ready] == 1.0

        (pid, *_) = worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            shown = label_values(await one.client.metrics_text(), "worker_id")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert len(shown) == len(worker_ids) - 1


def worker_pids() -> list[int]:
    """Of the worker actors of this test's own Ray."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "ray::WorkerActor" in " ".join(child.cmdline())]
