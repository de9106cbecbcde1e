"""The host's memory, and what a container may use of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdray import kv_memory
from pdray.kv_memory import free_host_bytes, host_memory_bytes


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kv_memory, "_CGROUP", tmp_path)
    return tmp_path


def test_without_a_limit_it_is_the_machines(cgroup: Path) -> None:
    total = host_memory_bytes()
    assert 0 < free_host_bytes() < total
    (cgroup / "memory.max").write_text("max\n")
    assert host_memory_bytes() == total


def test_a_containers_limit_counts_and_caches_can_be_taken_back(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("1000000\n")
    (cgroup / "memory.current").write_text("700000\n")
    (cgroup / "memory.stat").write_text("anon 500000\nactive_file 50000\ninactive_file 100000\n")
    assert host_memory_bytes() == 1_000_000
    assert free_host_bytes() == 450_000
