"""KubeRay's manifests: what KubeRay, Ray's autoscaler, Ray Serve and pdray read in them."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from pdray.cli.main import parser
from pdray.config import PdrayConfig, load_config, parse_config
from pdray.serve.app import config_of
from tests.promql import DEPLOY
from tests.unit.deploy.kuberay_api import check, cluster_of, pod_templates

CONFIGS = DEPLOY.parent
CLUSTER, SERVICE, JOB = (
    list(yaml.safe_load_all((DEPLOY / "kuberay" / f"{name}.yaml").read_text()))
    for name in ("raycluster", "rayservice", "rayjob")
)
RAY = [CLUSTER[-1], SERVICE[-1], JOB[-1]]
each_kind = pytest.mark.parametrize("manifest", RAY, ids=lambda manifest: manifest["kind"])


def pdray_config(manifest: dict[str, Any]) -> PdrayConfig:
    """What is served on it."""
    if manifest["kind"] == "RayService":
        (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
        return config_of(application["args"])
    if manifest["kind"] == "RayJob":
        return parse_config(yaml.safe_load(JOB[0]["data"]["pdray.yaml"]))
    return load_config(CONFIGS / "gpu-cluster.yaml")


@pytest.mark.parametrize("manifest", [*CLUSTER, *SERVICE, *JOB], ids=lambda each: each["kind"])
def test_kuberay_and_kubernetes_accept_it(manifest: dict[str, Any]) -> None:
    check(manifest)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(rayVersions="2.60.0"),
        lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="2"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"].update(nodeselector={}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(env={}),
    ],
)
def test_mistakes_are_found(spoil: Callable[[dict[str, Any]], object]) -> None:
    manifest = copy.deepcopy(CLUSTER[-1])
    spoil(manifest["spec"])
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


def node_types(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """As Ray's autoscaler reads the cluster that KubeRay makes."""
    metadata = {"name": manifest["metadata"]["name"], "namespace": "default"}
    read = _derive_autoscaling_config_from_ray_cr(
        {"metadata": metadata, "spec": cluster_of(manifest)}
    )
    types: dict[str, dict[str, Any]] = read["available_node_types"]
    return types


@each_kind
def test_the_autoscaler_can_make_a_node_for_every_worker(manifest: dict[str, Any]) -> None:
    assert cluster_of(manifest)["enableInTreeAutoscaling"] is True
    types = node_types(manifest)
    config = pdray_config(manifest)
    for group in config.node_groups.values():
        assert group.resource is not None
        (node,) = (each for each in types.values() if group.resource in each["resources"])
        num_workers = node["resources"][group.resource]
        for resource, amount in group.resources_per_worker.items():
            assert node["resources"][resource] >= amount * num_workers
    for pool in config.pools.values():
        resources = {config.node_groups[name].resource for name in pool.node_groups}
        rooms = [
            each["max_workers"] * each["resources"].get(resource, 0)
            for each in types.values()
            for resource in resources
        ]
        scaling = pool.autoscaling
        assert sum(rooms) >= (pool.replicas if scaling is None else scaling.max_replicas)


@each_kind
def test_ray_is_the_version_that_the_image_installs(manifest: dict[str, Any]) -> None:
    pins = (CONFIGS.parent / "constraints" / "cpu.txt").read_text()
    assert f"\nray=={cluster_of(manifest)['rayVersion']}\n" in pins


@each_kind
def test_pods_with_workers_may_lock_memory_and_drain_before_they_go(
    manifest: dict[str, Any],
) -> None:
    for template in pod_templates(cluster_of(manifest)):
        spec = template["spec"]
        (container,) = spec["containers"]
        shm = {volume["name"]: volume for volume in spec["volumes"]}["shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {
            volume["name"] for volume in spec["volumes"]
        }
        if "nvidia.com/gpu" not in container["resources"]["limits"]:
            continue
        assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
        _, script, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (DEPLOY / script.rpartition("/")[2]).exists()
        assert int(seconds) < spec["terminationGracePeriodSeconds"]


def test_a_pool_has_the_same_pods_in_all_of_them_but_for_their_volumes() -> None:
    def pods(manifest: dict[str, Any]) -> dict[str, Any]:
        groups = copy.deepcopy(cluster_of(manifest)["workerGroupSpecs"])
        for group in groups:
            spec = group["template"]["spec"]
            del spec["volumes"], spec["containers"][0]["volumeMounts"]
            spec["containers"][0]["env"] = [
                env for env in spec["containers"][0]["env"] if "HA_PROXY" not in env["name"]
            ]
        return {group["groupName"]: group for group in groups}

    cluster, service, job = (pods(manifest) for manifest in RAY)
    assert cluster == service
    assert job == {name: group for name, group in cluster.items() if name != "ingress"}


def test_the_jobs_entrypoint_is_a_command_that_pdray_takes() -> None:
    words = shlex.split(JOB[-1]["spec"]["entrypoint"])
    args = parser().parse_args(words[1:])
    (head, *_) = pod_templates(cluster_of(JOB[-1]))
    mounts = [mount["mountPath"] for mount in head["spec"]["containers"][0]["volumeMounts"]]
    for path in (args.config, str(args.input), str(args.output)):
        assert path.rpartition("/")[0] in mounts
    assert args.config.rpartition("/")[2] in JOB[0]["data"]


def test_what_the_heads_of_the_files_call_by_name_is_in_them() -> None:
    text = (DEPLOY / "kuberay" / "rayservice.yaml").read_text()
    assert f"svc/{SERVICE[-1]['metadata']['name']}-serve-svc" in text
    scrape = (DEPLOY / "prometheus" / "scrape.yaml").read_text()
    assert f"{SERVICE[-1]['metadata']['name']}-serve-svc." in scrape
    secrets = set(re.findall(r"create secret generic (\S+)", text))
    assert secrets == {"pdray-keys"} <= set(re.findall(r"[\w-]+", text.partition("spec:")[2]))
