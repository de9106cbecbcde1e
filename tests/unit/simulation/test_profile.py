"""Profile files: what comes out of one goes into it, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pdray.core.errors import ConfigError
from pdray.simulation.profile import parse_profile, profile_data
from tests.simulated import profile_of, worker_profile

NO_TIME = {
    "base_s": 0.0,
    "prefill_token_s": 1.0,
    "prefill_pair_s": 0.0,
    "decode_s": 0.0,
    "context_token_s": 0.0,
}


def written() -> dict[str, Any]:
    data = profile_data(profile_of(worker_profile("prefill"), worker_profile("decode")))
    read = yaml.safe_load(yaml.safe_dump(data))
    assert isinstance(read, dict)
    return read


def test_a_profile_comes_back_from_yaml_as_it_was() -> None:
    profile = profile_of(worker_profile("prefill"), worker_profile("decode", startup_s=(1.0, 2.5)))
    text = yaml.safe_dump(profile_data(profile))
    assert parse_profile(yaml.safe_load(text), "profile.yaml") == profile


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["workers"][1].update(num_blocks=0), r"\$.workers\[1\].num_blocks"),
        (lambda data: data["workers"][0].update(startup_s=[]), r"\$.workers\[0\].startup_s"),
        (lambda data: data["workers"][0].update(speed=1), "unknown field `speed`"),
        (lambda data: data["workers"][0]["step_time"].pop("base_s"), "missing.*`base_s`"),
        (lambda data: data["workers"][0].update(step_time=NO_TIME), "prefill on cpu.*some time"),
        (lambda data: data["links"][0].update(bytes_per_s=0), r"\$.links\[0\].bytes_per_s"),
        (lambda data: data["workers"].append(data["workers"][0]), "twice: workers: prefill, cpu"),
        (lambda data: data.clear(), "missing"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_by_file_and_field(change: Any, words: str) -> None:
    data = written()
    change(data)
    with pytest.raises(ConfigError, match=words) as refused:
        parse_profile(data, "profile.yaml")
    assert str(refused.value).startswith("profile.yaml: ")
