"""A profile measured here, of a tiny model, and what the simulator makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import yaml

from pdray.cli.main import main
from pdray.core.errors import ConfigError
from pdray.profiling.measuring import merge
from pdray.simulation.profile import parse_profile
from pdray.simulation.simulator import simulate
from tests.local_cluster import config_of
from tests.simulated import profile_of, request_of, scenario_of, worker_profile


@pytest.mark.slow
def test_what_was_measured_can_be_simulated(tiny_model_path: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model_path)
    path, output = tmp_path / "config.yaml", tmp_path / "profile.yaml"
    data = config.model_dump(mode="json", exclude_none=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    command = ["profile", str(path), "--output", str(output), "--seconds", "0.1", "--startups", "1"]
    assert main(command) == 0
    profile = parse_profile(yaml.safe_load(output.read_text()), str(output))
    assert [each.pool for each in profile.workers] == ["prefill", "decode"]
    worker = profile.worker("decode", "laptop")
    assert worker.num_blocks * worker.block_size >= worker.max_sequence_tokens == 512
    assert worker.startup_s[0] > 0.0
    assert profile.link("laptop", "laptop").bytes_per_s > 1e6
    base = scenario_of([request_of(0.0, 100, 20)], {"prefill": 1, "decode": 1})
    pools = tuple(
        replace(plan, groups=(replace(plan.groups[0], node_group="laptop"),)) for plan in base.pools
    )
    (outcome,) = simulate(replace(base, profile=profile, pools=pools)).outcomes
    assert outcome.finished_at is not None


def test_what_other_machines_have_measured_stays() -> None:
    here = profile_of(worker_profile("decode", num_blocks=7))
    there = profile_of(worker_profile("decode", num_blocks=5), worker_profile("prefill"))
    there = msgspec.structs.replace(there, measured_on="a")
    here = msgspec.structs.replace(here, measured_on="b")
    both = merge(there, here)
    assert both.worker("decode", "cpu").num_blocks == 7
    assert both.worker("prefill", "cpu") == worker_profile("prefill")
    assert both.measured_on == "a; b"
    assert merge(both, here) == both


def test_a_profile_of_another_model_is_not_overwritten() -> None:
    other = msgspec.structs.replace(profile_of(worker_profile("decode")), model="other")
    with pytest.raises(ConfigError, match="of model 'other', and this is 'tiny'"):
        merge(other, profile_of(worker_profile("decode")))


@pytest.mark.parametrize(("option", "value"), [("--seconds", "0"), ("--startups", "none")])
def test_an_effort_that_cannot_be_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "configs/demo.yaml", option, value])
    assert option in capsys.readouterr().err
