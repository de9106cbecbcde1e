"""``pdray policy``: autoscaling policies, before they act."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    policy = commands.add_parser("policy", help="check autoscaling policies")
    verbs = policy.add_subparsers(metavar="VERB", required=True)
    check = verbs.add_parser("check", help="whether a policy's file holds together")
    check.add_argument("file", metavar="FILE", type=Path, nargs="+")
    check.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    from pdray.scaling_config import load_policy

    for path in args.file:
        policy = load_policy(path)
        print(f"{path}: good, {policy.min_replicas} to {policy.max_replicas} workers")
    return 0
