"""What every test shares: a clean environment, the demo model, a tiny model, a clock."""

from __future__ import annotations

import os

# Before torch, transformers and the hub's library are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # a test starts its own Ray, never joins another

from pathlib import Path

# Two processes that keep unlike signatures of one function at the same moment can leave numba an
# index that names the one's code for the other's.
if (process := os.environ.get("PYTEST_XDIST_WORKER", "gw0")) != "gw0":
    folder = Path(__file__).parents[1] / ".pytest_cache" / f"numba-{process}"
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))

import pytest

from pdray.core.clock import ManualClock


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """Gemma 3 270M, prepared once into the user's cache (a minute the first time)."""
    from pdray.model_source import resolve_model

    return resolve_model("demo", print)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers with a byte tokenizer: every code path, no waiting."""
    from tests.tiny_model import save_tiny_model

    folder = tmp_path_factory.mktemp("tiny-llama")
    save_tiny_model(folder)
    return folder
