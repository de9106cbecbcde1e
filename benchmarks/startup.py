"""What a worker's start takes, part by part, with its model from the disk and from a peer.

    python -m benchmarks.startup --repeats 3
    python -m benchmarks.startup --repeats 5 --output-dir results

Two workers on a local Ray; one is killed again and again while the other lives, and what the
controller hears of each next one's start is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.file_reading import drop_from_cache, read_seconds
from benchmarks.result_file import save_result
from pdray.cluster.launch import down, in_use, up
from pdray.cluster.messages import ControllerStatus, WorkerStatus
from pdray.cluster.names import controller_name, find_controller, find_worker, kill_actor
from pdray.cluster.names import worker_name as name_of
from pdray.config import PdrayConfig, parse_config
from pdray.core.startup import StartupTimes
from pdray.model_source import resolve_model
from pdray.serve.ray_session import open_ray

POOL = "mixed"
START_S = 120.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``source`` as in ``transfer.weights``; a cold disk has the files out of the page cache."""

    name: str
    source: str
    is_cold: bool


CASES = (
    Case(name="disk, in the page cache", source="disk", is_cold=False),
    Case(name="disk, cold", source="disk", is_cold=True),
    Case(name="peer", source="peer", is_cold=True),
    Case(name="auto, cold disk", source="auto", is_cold=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    case: str
    times: StartupTimes


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        models = three_models(resolve_model(args.model, console.print), Path(folder))
        weights = sorted(models.others[0].glob("*.safetensors"))
        num_bytes = sum(file.stat().st_size for file in weights)
        drop_from_cache(weights)
        console.print(f"{num_bytes / 1e6:.0f} MB, cold: read once in {read_seconds(weights):.2f} s")
        for source in dict.fromkeys(case.source for case in CASES):
            findings += measure_source(source, models, args, console)
    console.print(table_of(findings))
    if args.output_dir is not None:
        path = save_result("startup", args, findings=[asdict(each) for each in findings])
        console.print(f"wrote {path}", highlight=False)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="a local folder, or the demo model")
    parser.add_argument("--kv-cache-bytes", default="1GiB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    return parser.parse_args(argv)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The same three times, and the ``link`` that the config names: to ``first``, which the worker
    that lives has loaded, or to one of the ``others`` in turn, as a file that somebody has mapped
    stays in the page cache."""

    link: Path
    first: Path
    others: tuple[Path, Path]

    def point_to(self, target: Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(target)


def three_models(path: Path, folder: Path) -> Models:
    one, two = (Path(shutil.copytree(path, folder / name)) for name in ("one", "two"))
    return Models(link=folder / "model", first=path, others=(one, two))


def measure_source(
    source: str, models: Models, args: argparse.Namespace, console: Console
) -> Iterator[Finding]:
    config = config_of(models.link, source, args.kv_cache_bytes)
    models.point_to(models.first)
    with running(config, console):
        others = itertools.cycle(models.others)
        for case in (case for case in CASES if case.source == source):
            for _ in range(args.repeats):
                other = next(others)
                models.point_to(other)
                files = sorted(other.iterdir())
                read_seconds(files)
                if case.is_cold and not drop_from_cache(files):
                    console.print(
                        f"{case.name}: the files stay in the page cache here", style="red"
                    )
                times = asyncio.run(start_again(config))
                console.print(f"{case.name}: {times}", highlight=False, soft_wrap=True)
                yield Finding(case=case.name, times=times)


def config_of(model: Path, source: str, kv_cache_bytes: str) -> PdrayConfig:
    engine = {"kv_cache_bytes": kv_cache_bytes, "num_threads": 1}
    pool = {"role": "mixed", "replicas": 2, "node_groups": ["laptop"], "engine": engine}
    return parse_config(
        {
            "model": str(model),
            "dtype": "float32",
            "mode": "soft",
            "node_groups": {"laptop": {}},
            "pools": {POOL: pool},
            "transfer": {"weights": source},
            "serve": {"application": "startup"},
        }
    )


@contextmanager
def running(config: PdrayConfig, console: Console) -> Iterator[None]:
    """On a Ray of its own, which prints no word of its workers."""
    session = open_ray([config], None, lambda text: None)
    try:
        up(config)
        with in_use(config):
            yield
        down(config)
    finally:
        session.close()


async def start_again(config: PdrayConfig) -> StartupTimes:
    """Kills the pool's second worker; how the next one started. Raises TimeoutError."""
    application, generation = config.serve.application, config.generation
    worker = await find_worker(name_of(application, generation, POOL, 1))
    assert worker is not None, "the worker is not there"
    killed_id = (await second_worker(config)).worker_id
    await kill_actor(worker)
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at:
        status = await second_worker(config)
        if status.startup is not None and status.worker_id != killed_id:
            return status.startup
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"no worker within {START_S:g} s: {status.progress} {status.last_failure}")


async def second_worker(config: PdrayConfig) -> WorkerStatus:
    controller = await find_controller(controller_name(config.serve.application, config.generation))
    assert controller is not None, "the controller is not there"
    status: ControllerStatus = await controller.status.remote()
    return status.workers[1]


def table_of(findings: Sequence[Finding]) -> Table:
    """A column for each case."""
    table = Table(title="A worker's start: seconds, medians")
    table.add_column("")
    cases = list(dict.fromkeys(found.case for found in findings))
    for case in cases:
        table.add_column(case, justify="right")
    runs = [[found.times for found in findings if found.case == case] for case in cases]
    for part, _ in findings[0].times.parts():
        values = [[dict(times.parts())[part] for times in each] for each in runs]
        table.add_row(part, *(f"{median(each):.2f}" for each in values))
    table.add_row("all", *(f"{median(t.total_s for t in each):.2f}" for each in runs), style="bold")
    return table


if __name__ == "__main__":
    sys.exit(main())
