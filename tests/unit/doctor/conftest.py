"""Configs to look at: two pools on one machine, with what a test changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pdray.config import parse_config
from pdray.doctor.local_plan import LocalPlan, plan_of

MakePlan = Callable[..., LocalPlan]


@pytest.fixture
def make_plan(tiny_model_path: Path) -> MakePlan:
    """``engine`` and ``tiers`` are both pools'; what else is given goes into the config."""

    def make(
        *,
        engine: dict[str, Any] | None = None,
        tiers: dict[str, Any] | None = None,
        node_group: str | None = None,
        **top: Any,
    ) -> LocalPlan:
        pool = {"node_groups": ["a"], "engine": engine or {"kv_cache_bytes": "1MiB"}}
        if tiers is not None:
            pool["tiers"] = tiers
        data = {
            "model": str(tiny_model_path),
            "node_groups": {"a": {}},
            "pools": {"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}},
        }
        return plan_of(parse_config(data | top), node_group)

    return make
