"""``pdray top``: what ``pdray status`` shows, once a second."""

from __future__ import annotations

import argparse
import time
from typing import Any

from pdray.cli.status import DEFAULT_URL


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "top",
        help="the same, live",
        description="Show what pdray status shows, live, until Ctrl-C.",
    )
    command.add_argument("url", metavar="URL", nargs="?", default=DEFAULT_URL)
    command.add_argument("--every", metavar="SECONDS", type=float, default=1.0)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import httpx
    from rich.live import Live
    from rich.text import Text

    from pdray.cli.overview import read_overview, shown
    from pdray.core.errors import ConfigError, UnavailableError

    if not args.every > 0.0:
        raise ConfigError(f"--every = {args.every:g}; accepted: seconds, more than 0")
    with httpx.Client() as http, Live(shown(read_overview(http, args.url)), screen=True) as live:
        while True:
            time.sleep(args.every)
            try:
                live.update(shown(read_overview(http, args.url)))
            except UnavailableError as error:
                live.update(Text(str(error), "red"))  # it may come back
