from __future__ import annotations

import os
from typing import Any

import pytest

from pdray.core.errors import ConfigError
from tests.unit.doctor.conftest import MakePlan

GROUPS = {
    "small": {"resource": "small", "resources_per_worker": {"CPU": 1}},
    "large": {"resources_per_worker": {"CPU": 1}, "engine": {"kv_cache_bytes": "2MiB"}},
    "unused": {},
}


def pools(replicas: int = 3) -> dict[str, Any]:
    engine = {"kv_cache_bytes": "1MiB"}
    return {
        "prefill": {
            "role": "prefill",
            "node_groups": ["small", "large"],
            "replicas": replicas,
            "engine": engine,
        },
        "decode": {"role": "decode", "node_groups": ["large"], "engine": engine},
    }


def test_without_a_node_group_all_workers_run_here_on_their_first_one(make_plan: MakePlan) -> None:
    plan = make_plan(node_groups=GROUPS, pools=pools())
    assert [(pool.name, pool.node_group, pool.num_workers) for pool in plan.pools] == [
        ("prefill", "small", 3),
        ("decode", "large", 1),
    ]
    assert plan.pools[1].engine.kv_cache_bytes == 2 * 2**20


def test_a_machine_of_a_node_group_has_the_workers_that_fit_of_pools_that_prefer_it(
    make_plan: MakePlan,
) -> None:
    plan = make_plan(node_groups=GROUPS, pools=pools(replicas=10_000), node_group="small")
    assert [(pool.name, pool.num_workers) for pool in plan.pools] == [
        ("prefill", os.cpu_count()),
    ]
    plan = make_plan(node_groups=GROUPS, pools=pools(), node_group="large")
    assert [pool.name for pool in plan.pools] == ["decode"]


def test_a_node_group_that_no_pool_prefers_has_those_that_may_come_to_it(
    make_plan: MakePlan,
) -> None:
    only_prefill = pools()["prefill"] | {"role": "mixed"}
    plan = make_plan(node_groups=GROUPS, pools={"p": only_prefill}, node_group="large")
    assert [(pool.name, pool.node_group) for pool in plan.pools] == [("p", "large")]


@pytest.mark.parametrize(
    ("name", "words"), [("smal", "did you mean small"), ("unused", "no pool names it")]
)
def test_a_node_group_that_nothing_runs_on_is_refused(
    name: str, words: str, make_plan: MakePlan
) -> None:
    with pytest.raises(ConfigError, match=f"--node-group = '{name}': {words}"):
        make_plan(node_groups=GROUPS, pools=pools(), node_group=name)


def test_a_model_that_is_not_here_yet_is_no_problem_and_one_that_cannot_be_is(
    make_plan: MakePlan,
) -> None:
    plan = make_plan(model="no-one/no-model")
    assert (plan.model_path, plan.model_problem) == (None, None)
    plan = make_plan(model="./nowhere")
    assert "is no folder" in str(plan.model_problem)
