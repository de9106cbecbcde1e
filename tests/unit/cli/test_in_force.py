from __future__ import annotations

from pdray.cli.in_force import lines_of
from pdray.config import load_config, parse_config
from tests.readme import README

ROOT = README.parent
DEMO = load_config(ROOT / "configs/demo.yaml")


def test_the_demo_says_how_its_phases_meet_and_on_what() -> None:
    assert list(lines_of(DEMO)) == [
        "pdray: mode pooled (prompts and decodes on workers of their own, short prompts where they "
        "decode)",
        "  placement cost, KV moves through nixl",
        "  pool prefill: 1 worker, role prefill, on laptop (CPU 1)",
        "  pool decode: 1 worker, role decode, on laptop (CPU 1)",
    ]


def test_in_mode_soft_nothing_moves() -> None:
    data = DEMO.model_dump(mode="json")
    pool = data["pools"]["decode"] | {"role": "mixed", "replicas": 2}
    lines = list(lines_of(parse_config(data | {"mode": "soft", "pools": {"mixed": pool}})))
    assert lines[0].startswith("pdray: mode soft (every worker computes prompts")
    assert lines[1] == "  placement cost"
    assert lines[2] == "  pool mixed: 2 workers, role mixed, on laptop (CPU 1)"


def test_node_groups_are_named_in_order_of_preference_with_what_a_worker_takes() -> None:
    data = DEMO.model_dump(mode="json")
    data["node_groups"]["big"] = {"resource": "h100", "resources_per_worker": {"GPU": 2}}
    data["pools"]["prefill"]["node_groups"] = ["big", "laptop"]
    lines = list(lines_of(parse_config(data)))
    assert lines[2].endswith("on big (GPU 2, h100 1), else laptop (CPU 1)")


def test_a_policy_that_moves_every_prompt_is_said_to() -> None:
    data = DEMO.model_dump(mode="json") | {"controller": {"placement": "least_loaded"}}
    assert "short prompts" not in next(lines_of(parse_config(data)))
