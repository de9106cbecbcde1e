"""``pdray status``: pools, workers, latencies and transfers of a running application."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8000"
_WIDTH = 140


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "status",
        help="what a running application does",
        description="Show pools, workers, latencies and transfers of a running application.",
    )
    command.add_argument("url", metavar="URL", nargs="?", default=DEFAULT_URL)
    command.add_argument("--json", action="store_true", help="all of it as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import httpx
    import msgspec
    from rich.console import Console

    from pdray.cli.overview import read_overview, shown

    with httpx.Client() as http:
        overview = read_overview(http, args.url)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(overview)).decode())
    else:
        width = None if sys.stdout.isatty() else _WIDTH
        Console(highlight=False, width=width).print(shown(overview))
    return 0
