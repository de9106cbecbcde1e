from __future__ import annotations

from pdray.cluster.node_groups import GroupChoice, WorkerResources, steady_first, worker_resources
from pdray.config import NodeGroupConfig


def test_a_worker_takes_one_unit_of_its_groups_resource() -> None:
    group = NodeGroupConfig(resource="h100", resources_per_worker={"CPU": 4, "GPU": 1, "nic": 2})
    assert worker_resources(group) == WorkerResources(
        num_cpus=4,
        num_gpus=1,
        resources={"nic": 2, "h100": 1},
        accelerator_type=None,
        label_selector={},
    )


def test_a_group_without_a_resource_asks_only_for_what_it_names() -> None:
    group = NodeGroupConfig(
        resources_per_worker={"CPU": 0.5}, accelerator_type="H100", labels={"zone": "a"}
    )
    assert worker_resources(group) == WorkerResources(
        num_cpus=0.5,
        num_gpus=0,
        resources={},
        accelerator_type="H100",
        label_selector={"zone": "a"},
    )


def test_workers_that_must_be_there_go_first_where_nobody_takes_machines_away() -> None:
    groups = ("cheap", "own", "other")
    assert steady_first(groups, frozenset({"cheap"})) == ("own", "other", "cheap")


def test_groups_are_tried_in_order_and_each_round_is_more_patient() -> None:
    choice = GroupChoice(("best", "other"))
    tried = []
    for _ in range(4):
        tried.append((choice.group, choice.patience_s))
        choice.next()
    assert tried == [("best", 10.0), ("other", 10.0), ("best", 20.0), ("other", 20.0)]
    choice.restart()
    assert choice.group == "best"


def test_patience_has_a_bound_which_is_that_of_an_only_group() -> None:
    choice = GroupChoice(("a", "b"))
    for _ in range(100):
        choice.next()
    assert choice.patience_s == 600.0
    assert GroupChoice(("only",)).patience_s == 600.0
