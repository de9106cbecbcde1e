"""``pdray doctor CONFIG``: what would go wrong on this machine, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdray.doctor.finding import Finding

EXIT_FOUND_ERRORS = 1
_INDENT = " " * 11


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "doctor",
        help="look for what would go wrong, before serving",
        description="Look at this machine, and at no other, for what would keep CONFIG from being "
        "served here, or served well. Exits with 1 where there is an error.",
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    command.add_argument(
        "--node-group",
        metavar="NAME",
        help="this machine is one of that node group, in a cluster (default: all workers run here)",
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import socket

    from pdray.config import load_config
    from pdray.doctor.examination import CHECKS
    from pdray.doctor.finding import Level
    from pdray.doctor.local_plan import plan_of

    plan = plan_of(load_config(args.config), args.node_group)
    print(f"{args.config} on this machine ({socket.gethostname()}) alone, {plan.text}")
    num = dict.fromkeys(Level, 0)
    for heading, check in CHECKS.items():
        for index, finding in enumerate(check(plan)):
            if index == 0:
                print(heading)
            num[finding.level] += 1
            for line in lines_of(finding):
                print(line, flush=True)
    print(", ".join(f"{level}: {count}" for level, count in num.items()))
    return EXIT_FOUND_ERRORS if num[Level.ERROR] else 0


def lines_of(finding: Finding) -> Iterator[str]:
    yield f"  {finding.level:<9}{finding.subject}: {finding.found}"
    if finding.remedy is not None:
        yield f"{_INDENT}remedy: {finding.remedy}"
