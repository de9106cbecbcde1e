"""``pdray profile CONFIG``: measures what the config's workers can do on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pdray.cli.progress import Progress


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "profile",
        help="measure what workers can do here, for `pdray policy replay`",
        description="Measure on this machine what CONFIG's workers can do: how long steps take, "
        "how much KV fits, how fast KV is read, how long a worker takes to start. The file that "
        "comes of it is what `pdray policy replay` simulates workers by.",
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    command.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("profile.yaml"),
        help="what it has of other pools and node groups stays (default: %(default)s)",
    )
    command.add_argument(
        "--node-group",
        metavar="NAME",
        help="this machine is one of that node group (default: all workers run here)",
    )
    command.add_argument(
        "--seconds",
        metavar="S",
        type=_positive(float),
        default=60.0,
        help="of steps, for each engine (default: %(default)g); slow machines take longer",
    )
    command.add_argument(
        "--startups",
        metavar="N",
        type=_positive(int),
        default=3,
        help="times that each engine is started (default: %(default)s)",
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import yaml

    from pdray.config import load_config
    from pdray.config_yaml import read_yaml
    from pdray.model_source import resolve_model
    from pdray.profiling.measuring import Effort, measure_profile, merge
    from pdray.simulation.profile import parse_profile, profile_data

    say = Progress()
    config = load_config(args.config)
    path: Path = args.output
    known = parse_profile(read_yaml(path), str(path)) if path.exists() else None
    effort = Effort(seconds=args.seconds, num_startups=args.startups)
    model_path = resolve_model(config.model, say)
    profile = measure_profile(config, args.node_group, model_path, effort, say)
    if known is not None:
        profile = merge(known, profile)
    path.write_text(yaml.safe_dump(profile_data(profile), sort_keys=False))
    say(f"written: {path}")
    return 0


def _positive(kind: type[float]) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}; accepted: above 0")
        return value

    return parse
