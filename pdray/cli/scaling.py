"""``pdray scaling explain``: why pools have as many workers as they have."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdray.cli.status import DEFAULT_URL

if TYPE_CHECKING:
    from pdray.core.scaling import TimedDecision


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    scaling = commands.add_parser("scaling", help="why pools have as many workers as they have")
    verbs = scaling.add_subparsers(metavar="VERB", required=True)
    explain = verbs.add_parser(
        "explain",
        help="the decisions on each pool, with what they came from",
        description="Show decisions on the number of each pool's workers, taken or not: the last "
        "ones of a running application, or all those of an event log.",
    )
    explain.add_argument("url", metavar="URL", nargs="?", default=DEFAULT_URL)
    explain.add_argument("--log", metavar="FOLDER", type=Path, help="controller.event_log.folder")
    explain.add_argument("--pool", metavar="NAME", help="of this pool only")
    explain.add_argument(
        "--changes", action="store_true", help="only decisions that changed a number"
    )
    explain.set_defaults(run=run_explain)


def run_explain(args: argparse.Namespace) -> int:
    for timed in _decisions(args):
        decision = timed.decision
        is_asked_for = args.pool in (None, decision.pool)
        if is_asked_for and (decision.is_change or not args.changes):
            print("\n".join(_lines(timed)))
    return 0


def _decisions(args: argparse.Namespace) -> Iterable[TimedDecision]:
    if args.log is not None:
        from pdray.event_log.scaling import read_decisions

        return read_decisions(args.log)
    import httpx

    from pdray.cli.overview import read_scaling

    with httpx.Client() as http:
        return read_scaling(http, args.url)


def _lines(timed: TimedDecision) -> Iterator[str]:
    decision = timed.decision
    at = datetime.datetime.fromtimestamp(timed.unix_time).astimezone()
    change = f"stays at {decision.allowed}"
    if decision.is_change:
        change = f"{decision.previous} -> {decision.allowed}"
    dry_run = " (dry run)" if decision.is_dry_run else ""
    yield f"{at:%Y-%m-%d %H:%M:%S} {decision.pool} {change}{dry_run}: {decision.reason}"
    yield (
        f"  {decision.current} take work, {decision.starting} start, {decision.standby} are warm; "
        f"demand {decision.demand:.2f}, over the look-back period {decision.aggregated:.2f}, "
        f"floor {decision.floor:.2f}, desired {decision.desired}"
    )
    for reading in decision.readings:
        yield (
            f"  {reading.signal} = {reading.value:.4g}, target {reading.target:g}: "
            f"{reading.workers:.2f} workers"
        )
