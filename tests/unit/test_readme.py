"""What the README shows is there; its requests are sent in ``tests/cluster/test_end_to_end.py``,
and what it does on a Ray cluster in ``test_serve_deploy.py`` and ``test_batch_command.py``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from pdray.cli.main import parser
from pdray.config import load_config, parse_config
from pdray.core.snapshot import Role
from tests.readme import README, code_blocks, commands_with

ROOT = README.parent


def test_the_config_example_is_a_valid_config() -> None:
    (example,) = code_blocks("yaml")
    config = parse_config(yaml.safe_load(example), "README.md")
    assert set(config.pools) == {"prefill", "decode"}


def test_every_make_command_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = commands_with("make")
    assert commands
    for command in commands:
        target = shlex.split(command)[1]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), command


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()) if ":" not in link]
    assert len(links) > 3
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_batch_job_is_a_command_that_pdray_takes() -> None:
    (job,) = commands_with("ray job submit")
    words = shlex.split(job.partition(" -- ")[2])
    assert words[0] == "pdray"
    args = parser().parse_args(words[1:])
    load_config(ROOT / args.config)


def test_the_other_commands_are_ones_that_pdray_takes() -> None:
    for name in ("status", "top", "explain"):
        (command,) = commands_with(f"pdray {name}")
        parser().parse_args(shlex.split(command, comments=True)[1:])


def test_the_doctor_is_given_configs_and_node_groups_that_are_there() -> None:
    commands = commands_with("pdray doctor")
    assert commands
    for command in commands:
        args = parser().parse_args(shlex.split(command)[1:])
        groups = load_config(ROOT / args.config).node_groups
        assert args.node_group is None or args.node_group in groups


def test_the_two_applications_are_served_by_a_command_that_pdray_takes() -> None:
    (command,) = commands_with("pdray serve")
    args = parser().parse_args(shlex.split(command)[1:])
    phases = [load_config(ROOT / path).phases for path in args.configs]
    assert phases == [Role.PREFILL, Role.DECODE]


def test_the_deploy_file_that_serve_is_given_names_a_config_that_is_there() -> None:
    (command,) = commands_with("serve deploy")
    deploy = yaml.safe_load((ROOT / shlex.split(command)[2]).read_text())
    (application,) = deploy["applications"]
    assert Path(ROOT / application["args"]["config"]).exists()
