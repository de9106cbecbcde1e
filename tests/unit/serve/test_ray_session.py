"""A local Ray has room for every worker of the config, on however small a machine."""

from __future__ import annotations

import pytest

from pdray.config import PdrayConfig, parse_config
from pdray.core.errors import ConfigError
from pdray.serve.ray_session import local_resources, open_ray


def config_of(replicas: int, cpus: float) -> PdrayConfig:
    engine = {"kv_cache_bytes": "1MiB"}
    groups = {
        "a": {"resource": "a-machine", "resources_per_worker": {"CPU": cpus}},
        "b": {"resource": "b-machine", "resources_per_worker": {"CPU": 2 * cpus, "nic": 0.5}},
    }
    pools = {
        "prefill": {"role": "prefill", "node_groups": ["a", "b"]},
        "decode": {"role": "decode", "node_groups": ["b"]},
    }
    return parse_config(
        {
            "model": "demo",
            "node_groups": groups,
            "pools": {
                name: pool | {"replicas": replicas, "engine": engine}
                for name, pool in pools.items()
            },
        }
    )


def test_all_workers_and_the_ingress_fit() -> None:
    resources = local_resources([config_of(replicas=50, cpus=1)])
    assert resources.num_cpus >= 50 * 2 + 50 * 2 + 1


def test_this_machine_stands_for_every_node_group() -> None:
    resources = local_resources([config_of(replicas=3, cpus=1)])
    assert resources.custom == {"a-machine": 3.0, "b-machine": 6.0, "nic": 3.0}


def test_several_applications_have_room_beside_each_other() -> None:
    few, many = config_of(replicas=1, cpus=1), config_of(replicas=3, cpus=1)
    both = local_resources([few, many])
    assert both.num_cpus == 3 + 4 * (2 + 2)  # two ingresses and one to spare, and the workers
    assert both.custom == {"a-machine": 4.0, "b-machine": 8.0, "nic": 4.0}


def test_parts_of_a_cpu_are_rounded_up() -> None:
    few = local_resources([config_of(replicas=101, cpus=0.25)]).num_cpus
    assert few == 103  # 101 * (0.5 + 0.5), the ingress, and one to spare


def test_a_transport_that_stays_in_one_process_is_refused_before_ray_starts() -> None:
    data = config_of(replicas=1, cpus=1).model_dump(mode="json")
    config = parse_config(data | {"transfer": {"transport": "loopback"}})
    with pytest.raises(ConfigError, match=r"loopback.*accepted: nixl"):
        open_ray([config], None, print)
