"""``pdray policy``: autoscaling policies, before they act."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    policy = commands.add_parser("policy", help="check autoscaling policies, and try them out")
    verbs = policy.add_subparsers(metavar="VERB", required=True)
    check = verbs.add_parser("check", help="whether a policy's file holds together")
    check.add_argument("file", metavar="FILE", type=Path, nargs="+")
    check.set_defaults(run=run_check)
    _add_replay(verbs)


def _add_replay(verbs: argparse._SubParsersAction[Any]) -> None:
    replay = verbs.add_parser(
        "replay",
        help="what a policy would have done on a trace",
        description="Simulate workers as PROFILE has them under the control plane as shipped: "
        "workers over time, SLO attainment, GPU-hours and cost. FILE is one policy for all pools "
        "of the profile, or a cluster's config whose pools name theirs.",
    )
    replay.add_argument("file", metavar="FILE", type=Path)
    replay.add_argument(
        "--trace", type=Path, required=True, help="Azure's (.csv) or Mooncake's (.jsonl)"
    )
    replay.add_argument("--profile", type=Path, required=True, help="by `pdray profile`")
    replay.add_argument(
        "--pool",
        metavar="NAME=N",
        action="append",
        default=[],
        type=_pool_of,
        help="this pool keeps N workers; may be given many times",
    )
    replay.add_argument(
        "--hours",
        type=_positive,
        help="make so much of a day of the trace, with a daily curve and two bursts "
        "(default: the trace as it is)",
    )
    replay.add_argument(
        "--rps", type=_positive, help="requests a second on average (default: the trace's)"
    )
    replay.add_argument("--seed", type=int, default=0, help="of the day and of start-up times")
    replay.add_argument("--png", metavar="OUT", type=Path, help="draw it")
    replay.set_defaults(run=run_replay)


def run_check(args: argparse.Namespace) -> int:
    from pdray.scaling_config import load_policy

    for path in args.file:
        policy = load_policy(path)
        print(f"{path}: good, {policy.min_replicas} to {policy.max_replicas} workers")
    return 0


def run_replay(args: argparse.Namespace) -> int:
    from pdray.cli.policy_replay import replay

    return replay(args)


def _pool_of(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text}; accepted: NAME=N, such as decode=4")
    return name, int(number)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; accepted: a number above 0")
    return value
