"""What a serving run found: numbers, their table, and the file that keeps them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import Machine
from benchmarks.open_loop import Run
from benchmarks.openai_stream import OVERLOADED, Exchange
from pdray.core.slo import Slo
from pdray.metrics.latency import Distribution, LatencySummary, summarize

LATE_CLIENT_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``errors`` counts failures by kind; ``num_overloaded`` (429s) are not among them.
    ``num_uncounted`` streams had no usage, so that events stand for tokens; in
    ``num_miscounted`` more events with text came than the usage has tokens."""

    summary: LatencySummary
    slo: Slo | None
    num_overloaded: int
    errors: dict[str, int]
    num_uncounted: int
    num_miscounted: int
    send_lag_s: Distribution | None
    loop_lag_s: Distribution | None

    @property
    def is_client_late(self) -> bool:
        lags = (self.send_lag_s, self.loop_lag_s)
        return any(lag is not None and lag.p99 > LATE_CLIENT_S for lag in lags)


def make_report(run: Run[Exchange], slo: Slo | None) -> Report:
    failed = Counter(seen.outcome for seen in run.answers if not seen.is_complete)
    num_overloaded = failed.pop(OVERLOADED, 0)
    return Report(
        summary=summarize([seen.record() for seen in run.answers], slo),
        slo=slo,
        num_overloaded=num_overloaded,
        errors=dict(failed),
        num_uncounted=sum(s.is_complete and s.num_output_tokens is None for s in run.answers),
        num_miscounted=sum(seen.has_more_events_than_tokens for seen in run.answers),
        send_lag_s=Distribution.of(run.send_lags_s),
        loop_lag_s=Distribution.of(run.loop_lags_s),
    )


def print_report(report: Report, console: Console) -> None:
    summary = report.summary
    table = Table(title="Latency, ms")
    for column in ("", "P50", "P90", "P99", "P99.9", "max", "mean", "count"):
        table.add_column(column, justify="left" if not column else "right")
    for name, distribution in (
        ("TTFT", summary.ttft_s),
        ("TPOT", summary.tpot_s),
        ("ITL", summary.itl_s),
        ("E2E", summary.e2e_s),
        ("client: sent late by", report.send_lag_s),
        ("client: woke late by", report.loop_lag_s),
    ):
        table.add_row(name, *_cells(distribution))
    console.print(table)
    console.print(
        f"{summary.num_complete} of {summary.num_requests} requests complete in"
        f" {summary.duration_s:.1f} s: {summary.completed_rps:.2f} requests/s,"
        f" {summary.prompt_tokens_per_s:.1f} prompt and"
        f" {summary.output_tokens_per_s:.1f} output tokens/s"
    )
    if report.slo is not None and summary.slo_attainment is not None:
        slo = report.slo
        console.print(
            f"goodput {summary.goodput_rps:.2f} requests/s at TTFT <= {slo.ttft_s} s and"
            f" {slo.percentile:.1%} of a request's gaps <= {slo.itl_s} s;"
            f" attainment {summary.slo_attainment:.1%}"
        )
    for warning in _warnings(report):
        console.print(warning, style="yellow")


def _cells(distribution: Distribution | None) -> list[str]:
    if distribution is None:
        return ["-"] * 6 + ["0"]
    d = distribution
    times = (d.p50, d.p90, d.p99, d.p999, d.max, d.mean)
    return [*(f"{1000 * seconds:.1f}" for seconds in times), str(d.count)]


def _warnings(report: Report) -> list[str]:
    warnings = []
    if report.num_overloaded:
        warnings.append(f"{report.num_overloaded} requests were refused as overload (429)")
    for kind, count in sorted(report.errors.items()):
        warnings.append(f"{count} requests failed: {kind}")
    if report.num_uncounted:
        warnings.append(
            f"{report.num_uncounted} streams had no usage: events were counted as tokens"
        )
    if report.num_miscounted:
        warnings.append(f"{report.num_miscounted} streams had more events than tokens")
    if report.is_client_late:
        warnings.append(
            f"the client was late (P99 over {1000 * LATE_CLIENT_S:.0f} ms): these figures are"
            " partly its own"
        )
    return warnings


def save_report(
    path: Path,
    report: Report,
    run: Run[Exchange],
    *,
    machine: Machine,
    arguments: Mapping[str, object],
) -> None:
    """Everything as JSON: the numbers, what they were measured on, and each request."""
    content = {
        "machine": asdict(machine),
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        **asdict(report),
        "is_client_late": report.is_client_late,
        "requests": _request_rows(run.answers, run.started_at),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _request_rows(answers: Sequence[Exchange], started_at: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for seen in answers:
        record = seen.record()
        rows.append(
            {
                "sent_s": round(seen.sent_at - started_at, 6),
                "outcome": seen.outcome,
                "prompt_tokens": seen.num_prompt_tokens,
                "output_tokens": seen.num_output_tokens,
                "ttft_s": record.ttft_s,
                "tpot_s": record.tpot_s,
                "e2e_s": record.e2e_s,
            }
        )
    return rows
