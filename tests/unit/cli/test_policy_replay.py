"""``pdray policy replay``: small traces, made here, on workers that take easy numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from pdray.cli.main import main
from pdray.simulation.profile import profile_data
from tests.simulated import profile_of, worker_profile

POLICY = """
min_replicas: 1
max_replicas: 4
upscale_delay_s: 0
downscale_delay_s: 20
look_back_period_s: 2
slo: {ttft_s: 1.0, itl_s: 0.05, percentile: 0.9}
"""
CONFIG = """
model: demo
node_groups: {cpu: {}}
slo: {ttft_s: 1.0, itl_s: 0.05, percentile: 0.9}
pools:
  front:
    {role: prefill, node_groups: [cpu], autoscaling: policy.yaml, engine: {kv_cache_bytes: 1GiB}}
  back:
    {role: decode, node_groups: [cpu], replicas: 3, engine: {kv_cache_bytes: 1GiB}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a trace of two minutes: in the second, prompts come that take four workers."""
    calm = [(second, 100) for second in range(0, 60, 2)]
    busy = [(60 + tenth / 5, 4000) for tenth in range(300)]
    rows = [_row(at, length) for at, length in [*calm, *busy]]
    (tmp_path / "trace.csv").write_text(
        "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n"
    )
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "cluster.yaml").write_text(CONFIG)
    _write_profile(tmp_path / "profile.yaml", "prefill", "decode")
    return tmp_path


def _row(at_s: float, prompt_tokens: int) -> str:
    minute, second = divmod(at_s, 60)
    return f"2023-11-16 18:{int(minute):02}:{second:010.7f},{prompt_tokens},5"


def _write_profile(path: Path, *pools: str) -> None:
    workers = [worker_profile(pool, cost_per_hour=3.0) for pool in pools]
    path.write_text(yaml.safe_dump(profile_data(profile_of(*workers))))


def replay(folder: Path, *options: str, file: str = "policy.yaml") -> int:
    files = ["--trace", str(folder / "trace.csv"), "--profile", str(folder / "profile.yaml")]
    return main(["policy", "replay", str(folder / file), *files, *options])


def table(text: str) -> dict[str, str]:
    lines = [line.split("  ") for line in text.split("\n\n")[0].splitlines()]
    return {parts[0].strip() or parts[1]: parts[-1].strip() for parts in lines}


def course(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n\n")[1].splitlines()[1:]]


def test_a_policy_follows_the_load_and_says_what_that_costs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(folder, "--png", str(folder / "out.png")) == 0
    shown = capsys.readouterr().out
    rows = table(shown)
    assert rows["requests"] == "330"
    assert float(rows["SLO attainment"].rstrip("%")) > 10.0
    assert float(rows["cost"]) == pytest.approx(3.0 * float(rows["GPU-hours"]), abs=0.3)
    num_prefill = [float(row[-1]) for row in course(shown)]
    assert num_prefill[0] == 1.0
    assert max(num_prefill) > 3.0
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_clusters_config_has_a_policy_for_each_pool(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_profile(folder / "profile.yaml", "front", "back")
    assert replay(folder, file="cluster.yaml") == 0
    rows = course(capsys.readouterr().out)
    assert {row[-2] for row in rows} == {"3.0"}  # back has no policy
    assert max(float(row[-1]) for row in rows) > 3.0


def test_a_pool_may_be_held_while_the_others_follow(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(folder, "--pool", "prefill=2") == 0
    assert {row[-1] for row in course(capsys.readouterr().out)} == {"2.0"}


def test_a_day_is_made_of_a_trace_and_its_seed_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def once(seed: str) -> str:
        assert replay(folder, "--hours", "0.1", "--rps", "1", "--seed", seed) == 0
        return capsys.readouterr().out

    assert once("1") == once("1")
    assert once("1") != once("2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pool", "middle=2"], "--pool middle: accepted: prefill, decode"),
        (["--trace", "none.csv"], "none.csv"),
        (["--trace", "trace.txt"], "a trace's name ends in one of .csv, .jsonl"),
        (["--profile", "none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert replay(folder, *options) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert len(said.err.splitlines()) == 1


def test_a_profile_without_a_pool_of_the_config_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(folder, file="cluster.yaml") == 1
    assert "the profile has no pool 'front' on 'cpu'; it has prefill" in capsys.readouterr().err
    _write_profile(folder / "profile.yaml", "front", "back")
    assert replay(folder) == 1
    assert "pool 'front' does not say its role" in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_before_anything_is_simulated(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert replay(folder, "--png", str(folder / "out.png")) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "pip install 'pdray[bench]'" in said.err


@pytest.mark.parametrize("pool", ["prefill", "prefill=", "=2", "prefill=0", "prefill=x"])
def test_a_pool_needs_a_name_and_a_number(
    folder: Path, capsys: pytest.CaptureFixture[str], pool: str
) -> None:
    with pytest.raises(SystemExit):
        replay(folder, "--pool", pool)
    assert "accepted: NAME=N, such as decode=4" in capsys.readouterr().err
