"""``pdray explain REQUEST_ID``: why a request was placed where it was, out of the event log."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_WIDTH = 140


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "explain",
        help="why a request was placed where it was",
        description="Show a request's placement, with what was known then and the runners-up: out "
        "of the event log that controller.event_log in the config asks for.",
    )
    command.add_argument("request_id", metavar="REQUEST_ID", help="a response's id")
    command.add_argument(
        "--log", metavar="FOLDER", type=Path, required=True, help="controller.event_log.folder"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from pdray.cli.explanation import show
    from pdray.event_log.explain import explain

    console = Console(highlight=False, width=_WIDTH)
    for explanation in explain(args.log, args.request_id):
        show(console, explanation)
    return 0
