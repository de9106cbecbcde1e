"""Policy files: what is good, what contradicts itself, what is said then."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdray.cli.main import main
from pdray.core.errors import ConfigError
from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.scaling_config import load_policy, parse_policy

POLICIES = Path(__file__).parents[2] / "autoscaling"
SLO = Slo(ttft_s=2.0, itl_s=0.2, percentile=0.99)


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_policy_that_comes_with_pdray_is_good(path: Path) -> None:
    policy = load_policy(path)
    for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
        assert policy.policy(role, SLO).rails.max_replicas >= 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, ["max_replicas = 2", "min_replicas, 3"]),
        ({"initial_replicas": 9, "max_replicas": 4}, ["initial_replicas = 9", "1-4"]),
        (
            {"downscale_to_zero_delay_s": 5.0},
            ["downscale_to_zero_delay_s = 5.0", "min_replicas: 0"],
        ),
        ({"look_back_period_s": 0.5}, ["look_back_period_s = 0.5", "metrics_interval_s"]),
        ({"downscaling_factor": 1.5}, ["downscaling_factor = 1.5", "at most 1"]),
        ({"signals": {"kv_utilisation": 0.5}}, ["kv_utilisation", "did you mean kv_utilization?"]),
        ({"signals": {"worker.heat": 0.5}}, ["worker.heat", "worker.num_running"]),
        ({"signals": {}}, ["signals", "should name a signal"]),
        ({"upscale_delay": 3}, ["upscale_delay: unknown key", "did you mean upscale_delay_s?"]),
        (
            {"schedule": [{"start": "8:00", "end": "09:00", "min_replicas": 1}]},
            ["schedule.0.start = '8:00'", "'08:30'"],
        ),
        (
            {"schedule": [{"start": "08:00", "end": "08:00", "min_replicas": 1}]},
            ["schedule.0.end = '08:00'"],
        ),
        (
            {"schedule": [{"start": "08:00", "end": "09:00", "min_replicas": 5}]},
            ["schedule.0.min_replicas = 5", "max_replicas, 1"],
        ),
        (
            {
                "schedule": [
                    {"start": "08:00", "end": "09:00", "timezone": "Mars", "min_replicas": 1}
                ]
            },
            ["schedule.0.timezone = 'Mars'", "Europe/Berlin"],
        ),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(
    data: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_policy(data)
    for word in words:
        assert word in str(refused.value)


def test_the_command_says_whether_a_file_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = POLICIES / "slo.yaml", tmp_path / "bad.yaml"
    bad.write_text("min_replicas: -1\n")
    assert main(["policy", "check", str(good)]) == 0
    assert "good, 1 to 8 workers" in capsys.readouterr().out
    assert main(["policy", "check", str(bad)]) == 1
    assert "bad.yaml: min_replicas = -1" in capsys.readouterr().err
