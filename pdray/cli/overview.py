"""An application's overview, over HTTP, and how a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import httpx
import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pdray.core.errors import UnavailableError
from pdray.core.overview import Overview, Percentiles, WorkerOverview
from pdray.core.scaling import ScalingDecision, TimedDecision

T = TypeVar("T")

_TIMEOUT_S = 10.0


def read_overview(http: httpx.Client, url: str) -> Overview:
    """Raises UnavailableError."""
    return _read(http, url, "data", Overview)


def read_scaling(http: httpx.Client, url: str) -> tuple[TimedDecision, ...]:
    """Raises UnavailableError."""
    return _read(http, url, "scaling", tuple[TimedDecision, ...])


def _read(http: httpx.Client, url: str, what: str, kind: type[T]) -> T:
    try:
        answer = http.get(f"{url.rstrip('/')}/dashboard/{what}", timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=kind)
    except (httpx.InvalidURL, httpx.HTTPError) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"no overview from {url}: {reason}") from error
    except msgspec.DecodeError as error:
        raise UnavailableError(f"{url} is not a pdray of this version: {error}") from error


def shown(overview: Overview) -> RenderableType:
    """All of it."""
    return Group(
        *_lines(overview), _workers(overview), *_notes(overview.workers), *_pairs(overview)
    )


def _lines(overview: Overview) -> Iterator[Text]:
    yield Text.assemble(
        (overview.application, "bold"),
        f"  mode {overview.mode}, placement {overview.placement}, ",
        f"{overview.num_frontends} frontends",
    )
    yield Text(
        f"{overview.num_in_flight} of {overview.max_in_flight} requests in flight, "
        f"{overview.num_queued} queued; {overview.requests_per_s:.3g} requests/s, "
        f"{overview.tokens_per_s:.3g} tokens/s in the last {overview.window_s:.0f} s"
    )
    yield _latency("TTFT", overview.ttft, overview.slo_ttft_s)
    yield _latency("ITL ", overview.itl, overview.slo_itl_s)
    yield _placed(overview)
    for timed in overview.scaling:
        yield _scaling(timed.decision)
    for pool in overview.idle_pools:
        yield Text(f"pool {pool} gets no requests while others do", "red")
    yield Text()


def _latency(name: str, of: Percentiles | None, target_s: float) -> Text:
    if of is None:
        return Text(f"{name}  none, target {_ms(target_s)} ms")
    style = "red" if of.p99_s > target_s else ""
    text = (
        f"{name}  P50 {_ms(of.p50_s)}  P90 {_ms(of.p90_s)}  P99 {_ms(of.p99_s)}  "
        f"max {_ms(of.max_s)} ms, target {_ms(target_s)}"
    )
    return Text(text, style)


def _placed(overview: Overview) -> Text:
    share = overview.disaggregated_share
    if share is None:
        return Text("no request placed yet")
    total = sum(overview.num_placed_by_how.values())
    others = [
        f"{how} {count / total:.0%}"
        for how, count in overview.num_placed_by_how.items()
        if count and how != "disaggregated"
    ]
    why = f"; on one worker: {', '.join(others)}" if others else ""
    return Text(f"disaggregated {share:.0%}{why}")


def _scaling(decision: ScalingDecision) -> Text:
    acts = " (dry run)" if decision.is_dry_run else ""
    return Text(
        f"pool {decision.pool} wants {decision.allowed} workers{acts}: {decision.current} take "
        f"work, {decision.starting} start, {decision.standby} are warm; {decision.reason}"
    )


def _workers(overview: Overview) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("pool", "worker", "role", "group", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("batch", "KV", "waiting", "prompt tokens", "step ms", "prefix hits"):
        table.add_column(name, justify="right")
    for worker in overview.workers:
        table.add_row(*_cells(worker))
    return table


def _cells(worker: WorkerOverview) -> Iterator[RenderableType]:
    yield worker.pool
    yield _name(worker)
    yield worker.role
    yield worker.node_group
    yield Text(worker.state, "" if worker.state == "ready" else "red")
    yield f"{worker.num_running}/{worker.max_batch_size}"
    yield f"{worker.kv_utilization:.0%}"
    yield str(worker.num_waiting)
    yield str(worker.prefill_backlog_tokens)
    yield "-" if worker.step_s is None else _ms(worker.step_s)
    yield "-" if worker.prefix_hit_ratio is None else f"{worker.prefix_hit_ratio:.0%}"


def _name(worker: WorkerOverview) -> str:
    return worker.worker_id or f"#{worker.index}"


def _notes(workers: Sequence[WorkerOverview]) -> Iterator[Text]:
    for worker in workers:
        if worker.note:
            yield Text(f"{worker.pool} {_name(worker)}: {worker.note}")


def _pairs(overview: Overview) -> Iterator[Text]:
    if overview.pairs:
        yield Text()
    for pair in overview.pairs:
        yield Text(
            f"KV {pair.source} to {pair.target}: {pair.bytes_per_s / 1e6:.3g} MB/s, "
            f"{pair.num_bytes / 1e6:.3g} MB of late"
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1.0 else f"{1e3 * seconds:.0f}"
