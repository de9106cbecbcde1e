"""Ray's own schemas of the files for ``serve deploy`` and ``ray up``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from pdray.cli.main import parser
from pdray.config import load_config
from pdray.serve.app import DEPLOYMENT, REPLICA_ENV, build_app
from tests.promql import DEPLOY

CONFIGS = DEPLOY.parent
LAUNCHER = yaml.safe_load((DEPLOY / "aws-cluster.yaml").read_text())


def serve_files() -> dict[str, dict[str, Any]]:
    """By name; in a RayService it is a text of its own."""
    paths = [CONFIGS / "serve.yaml", CONFIGS / "serve-service.yaml", DEPLOY / "serve.yaml"]
    files = {str(path.relative_to(CONFIGS)): yaml.safe_load(path.read_text()) for path in paths}
    service = yaml.safe_load((DEPLOY / "kuberay" / "rayservice.yaml").read_text())
    return files | {"rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"])}


FILES = serve_files()


@pytest.mark.parametrize("name", FILES)
def test_ray_serve_accepts_it(name: str) -> None:
    for application in ServeDeploySchema.model_validate(FILES[name]).applications:
        assert application.import_path == f"{build_app.__module__.rpartition('.')[0]}:build_app"
        for deployment in application.deployments:
            assert deployment.name == DEPLOYMENT
            options = deployment.ray_actor_options
            assert options.runtime_env["env_vars"] == REPLICA_ENV
            assert set(options.resources) == {"ingress"}


@pytest.mark.parametrize("name", ["deploy/serve.yaml", "rayservice.yaml"])
def test_off_one_machine_somebody_has_a_key(name: str) -> None:
    assert FILES[name]["http_options"]["host"] == "0.0.0.0"
    args = FILES[name]["applications"][0]["args"]
    config = args["config"]
    keys = load_config(CONFIGS / "gpu-cluster.yaml").serve.keys_file
    assert keys is not None
    assert Path(keys).name == "keys.yaml"
    assert config in ("/etc/pdray/pdray.yaml",) or config["serve"]["keys_file"]


def test_ray_up_accepts_the_cluster() -> None:
    validate_config(prepare_config(LAUNCHER))


def test_the_launched_machines_have_room_for_what_is_served_on_them() -> None:
    resources = [each["resources"] for each in LAUNCHER["available_node_types"].values()]
    config = load_config(CONFIGS / "gpu-cluster.yaml")
    for group in config.node_groups.values():
        (machine,) = (each for each in resources if group.resource in each)
        for resource, amount in group.resources_per_worker.items():
            assert machine[resource] >= amount * machine[group.resource]
    head = LAUNCHER["available_node_types"][LAUNCHER["head_node_type"]]["resources"]
    assert head["ingress"] >= config.serve.ingress_replicas
    assert "/etc/pdray" in LAUNCHER["file_mounts"]


def test_what_the_readme_says_is_there_and_taken() -> None:
    text = (DEPLOY / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if not (DEPLOY / link).exists()] == []
    commands = re.findall(
        r"(?:^ *|`|-- )pdray (.+?)(?:#|`|$)", text.replace("\\\n", ""), re.MULTILINE
    )
    assert len(commands) > 3
    for command in commands:
        parser().parse_args(shlex.split(command.partition(" >")[0]))
