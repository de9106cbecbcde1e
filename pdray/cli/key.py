"""``pdray key new``: makes an API key."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "key",
        help="make an API key",
        description="Make API keys for serve.keys_file.",
    )
    actions = command.add_subparsers(metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        help="make a key and its entry",
        description="Make a key: it is printed once, to stderr; its entry, which only has a hash "
        "of it, goes to stdout. To use it: pdray key new --tenant NAME >> keys.yaml",
    )
    new.add_argument("--tenant", required=True, metavar="NAME", help="whose key it is")
    new.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pdray.serve.keys import new_key

    key, entry = new_key(args.tenant)
    print(key, file=sys.stderr)
    print(entry.line)
    return 0
