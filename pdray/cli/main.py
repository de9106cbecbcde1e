"""The ``pdray`` command. Each command is a file with ``add_parser`` and ``run``; what is heavy
is imported when a command runs, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pdray import __version__
from pdray.cli import batch, doctor, explain, key, policy, profile, scaling, serve, status, top
from pdray.cli.serve import EXIT_ERROR
from pdray.core.errors import PdrayError
from pdray.core.out_of_scope import out_of_scope

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    args = parse(argv)
    try:
        code: int = args.run(args)
    except PdrayError as error:
        print(f"pdray: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """As argparse does, which ends the process where an option cannot be; of those that are left
    out on purpose it says so."""
    pdray = parser()
    args, unknown = pdray.parse_known_args(argv)
    for word in unknown:
        if reason := out_of_scope(word.partition("=")[0]):
            pdray.error(f"{word}: {reason}")
    if unknown:
        pdray.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def parser() -> argparse.ArgumentParser:
    pdray = argparse.ArgumentParser(
        prog="pdray", description="Prefill and decode of one model in separate pools."
    )
    pdray.add_argument("--version", action="version", version=f"pdray {__version__}")
    commands = pdray.add_subparsers(metavar="COMMAND", required=True)
    shown = (serve, doctor, profile, batch, status, top, explain, policy, scaling, key)
    for command in shown:
        command.add_parser(commands)
    return pdray
