"""``pdray batch CONFIG``: answers a file of requests, with workers that live as long as it runs."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdray.cli.progress import Progress

if TYPE_CHECKING:
    from pdray.serve.batch import BatchCounts

DEFAULT_MAX_IN_FLIGHT = 256
GIVE_UP_AFTER_S = 1800.0
LINE_EVERY_S = 10.0


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "batch",
        help="answer a file of requests",
        description="Answer a file of requests in OpenAI's batch format. Run again after an "
        "interruption, it goes on where it was.",
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    command.add_argument("--input", required=True, type=Path, metavar="JSONL", help="requests")
    command.add_argument("--output", required=True, type=Path, metavar="JSONL", help="answers")
    command.add_argument(
        "--max-in-flight",
        type=positive,
        default=DEFAULT_MAX_IN_FLIGHT,
        metavar="N",
        help=f"requests at a time (default: {DEFAULT_MAX_IN_FLIGHT})",
    )
    command.add_argument(
        "--address", help="Ray cluster to use (default: RAY_ADDRESS, else a local Ray of its own)"
    )
    command.set_defaults(run=run)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: an integer from 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from pdray.config import load_config, ray_address
    from pdray.serve.batch_files import check_input

    say = Progress()
    # What is wrong with the files is said before anything is started.
    config = load_config(args.config)
    num_lines = check_input(args.input)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    from pdray.serve.batch_cluster import run_batch

    with progress_bar(num_lines, say) as on_change:
        counts = run_batch(
            config,
            address=args.address or ray_address(),
            input_path=args.input,
            output_path=args.output,
            max_in_flight=args.max_in_flight,
            give_up_after_s=GIVE_UP_AFTER_S,
            say=say,
            on_change=on_change,
        )
    say(summary(counts))
    return 0


def summary(counts: BatchCounts) -> str:
    return (
        f"{counts.num_ok} answered, {counts.num_failed} failed, {counts.num_skipped} were there; "
        f"{counts.num_prompt_tokens} prompt and {counts.num_output_tokens} output tokens"
    )


@contextmanager
def progress_bar(num_lines: int, say: Progress) -> Iterator[Callable[[BatchCounts], None]]:
    """A bar on a terminal; else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield line_now_and_then(num_lines, say)
        return
    text = TextColumn("{task.fields[text]}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=num_lines, text="")

        def on_change(counts: BatchCounts) -> None:
            text = f"{counts.num_failed} failed" if counts.num_failed else ""
            bar.update(task, completed=counts.num_done, text=text)

        yield on_change


def line_now_and_then(num_lines: int, say: Progress) -> Callable[[BatchCounts], None]:
    from pdray.core.clock import WallClock

    clock = WallClock()
    said_at = clock.now() - LINE_EVERY_S

    def on_change(counts: BatchCounts) -> None:
        nonlocal said_at
        if clock.now() - said_at >= LINE_EVERY_S or counts.num_done == num_lines:
            said_at = clock.now()
            say(f"{counts.num_done} of {num_lines} lines, {counts.num_failed} failed")

    return on_change
