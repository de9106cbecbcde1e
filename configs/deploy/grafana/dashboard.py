"""Makes ``dashboard.json`` beside this file: what an operator of pdray looks at in Grafana.

``python configs/deploy/grafana/dashboard.py`` after a change; needs ``grafana-foundation-sdk``
(in ``pdray[dev]``). Import the JSON in Grafana and choose the Prometheus that scrapes pdray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders.common import StackingConfig, VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

DASHBOARD = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 8  # of 24: three panels beside each other
HEIGHT = 8

SECONDS, BYTES_PER_S, BYTES, PER_S = "s", "Bps", "bytes", "short"
SHARE = "percentunit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A panel; ``lines`` is each legend with its PromQL."""

    title: str
    lines: dict[str, str]
    unit: str = PER_S
    text: str = ""
    is_stacked: bool = False


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, summed."""
    return f"sum {_by(by)}(rate({metric}{where}[$__rate_interval]))"


def quantile(at: str, histogram: str, by: str = "") -> str:
    labels = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({at}, {rate(f'{histogram}_bucket', labels)})"


def quantiles(histogram: str, by: str = "", legend: str = "") -> dict[str, str]:
    """The middle and the end."""
    return {f"{legend}P{100 * at:g}": quantile(str(at), histogram, by) for at in (0.5, 0.99)}


def against(target: str, histogram: str) -> dict[str, str]:
    """Percentiles, that of the config among them, and the target."""
    at = "scalar(max(pdray_slo_percentile))"
    return {
        "P50": quantile("0.5", histogram),
        "P90": quantile("0.9", histogram),
        "at slo.percentile": quantile(at, histogram),
        "target": f"max({target})",
    }


def _by(labels: str) -> str:
    return f"by ({labels}) " if labels else ""


ROWS = {
    "Latency": [
        Graph(
            title="Time to first token",
            lines=against("pdray_slo_ttft_seconds", "pdray_time_to_first_token_seconds"),
            unit=SECONDS,
        ),
        Graph(
            title="Between two tokens",
            lines=against("pdray_slo_itl_seconds", "pdray_inter_token_latency_seconds"),
            unit=SECONDS,
        ),
        Graph(
            title="Whole requests",
            lines=quantiles("pdray_e2e_request_latency_seconds", legend="end to end, ")
            | quantiles("pdray_time_per_output_token_seconds", legend="per output token, "),
            unit=SECONDS,
        ),
        Graph(
            title="Requests that ended, per second",
            lines={"{{outcome}}": rate("pdray_requests_total", "outcome")},
            is_stacked=True,
        ),
        Graph(
            title="Tokens per second",
            lines={
                "of prompts": rate("pdray_prompt_tokens_total"),
                "generated": rate("pdray_generation_tokens_total"),
            },
        ),
        Graph(
            title="Requests in flight",
            lines={"{{replica}}": "sum by (replica) (pdray_num_requests_in_flight)"},
            is_stacked=True,
        ),
    ],
    "Pools": [
        Graph(
            title="Workers by state",
            lines={"{{pool}} {{state}}": "sum by (pool, state) (pdray_num_workers)"},
            is_stacked=True,
        ),
        Graph(
            title="Workers: wanted and ready",
            lines={
                "{{pool}} wanted": "max by (pool) (pdray_desired_workers)",
                "{{pool}} ready": 'sum by (pool) (pdray_num_workers{state="ready"})',
            },
        ),
        Graph(
            title="Start of a worker, by part",
            text="Of those that are there now, the slowest: what a scale-up waits for.",
            lines={"{{pool}} {{part}}": "max by (pool, part) (pdray_worker_startup_seconds)"},
            unit=SECONDS,
            is_stacked=True,
        ),
        Graph(
            title="Requests on workers",
            lines={
                "{{pool}} running": "sum by (pool) (pdray_num_requests_running)",
                "{{pool}} waiting": "sum by (pool) (pdray_num_requests_waiting)",
            },
        ),
        Graph(
            title="Busy with",
            text="Share of their time that a pool's workers spend in steps, by what is in them.",
            lines={
                "{{pool}} {{phase}}": f"{rate('pdray_engine_step_seconds_sum', 'pool, phase')}"
                " / on (pool) group_left count by (pool) (pdray_kv_utilization)"
            },
            unit=SHARE,
            is_stacked=True,
        ),
        Graph(
            title="Step time, P99",
            lines={
                "{{pool}} {{phase}}": quantile("0.99", "pdray_engine_step_seconds", "pool, phase")
            },
            unit=SECONDS,
        ),
        Graph(
            title="Tokens computed per second",
            lines={"{{pool}} {{phase}}": rate("pdray_engine_tokens_total", "pool, phase")},
        ),
    ],
    "Placement": [
        Graph(
            title="Queue",
            text="Past the limit of requests placed, others wait in the controller.",
            lines={
                "queued": "sum(pdray_num_requests_queued)",
                "placed": "sum(pdray_num_requests_placed)",
                "limit": "sum(pdray_max_requests_placed)",
            },
        ),
        Graph(
            title="Placed, by how",
            lines={"{{how}}": rate("pdray_requests_placed_total", "how")},
            is_stacked=True,
        ),
        Graph(
            title="Pools without requests",
            lines={"{{pool}}": "max by (pool) (pdray_idle_pool)"},
        ),
    ],
    "KV memory": [
        Graph(
            title="In use",
            lines={
                "{{pool}} mean": "avg by (pool) (pdray_kv_utilization)",
                "{{pool}} fullest": "max by (pool) (pdray_kv_utilization)",
            },
            unit=SHARE,
        ),
        Graph(
            title="Blocks by state",
            lines={"{{pool}} {{state}}": "sum by (pool, state) (pdray_kv_blocks)"},
            is_stacked=True,
        ),
        Graph(
            title="Prefix cache: share of prompt tokens found",
            lines={
                "{{pool}}": f"{rate('pdray_prefix_cache_hits_total', 'pool')}"
                f" / {rate('pdray_prefix_cache_queries_total', 'pool')}"
            },
            unit=SHARE,
        ),
        Graph(
            title="Prefix tokens from other workers, per second",
            lines={"{{pool}}": rate("pdray_prefix_borrowed_tokens_total", "pool")},
        ),
        Graph(
            title="Cached blocks evicted, per second",
            lines={"{{pool}}": rate("pdray_prefix_cache_evicted_blocks_total", "pool")},
        ),
        Graph(
            title="Prompts that wait for their handle",
            text="Mode service: computed, and not claimed yet.",
            lines={"{{pool}}": "sum by (pool) (pdray_num_prompts_parked)"},
        ),
    ],
    "Transfers": [
        Graph(
            title="KV read from other workers",
            lines={
                "{{source_pool}} to {{target_pool}}, {{transport}}": rate(
                    "pdray_kv_transfer_bytes_total", "source_pool, target_pool, transport"
                )
            },
            unit=BYTES_PER_S,
        ),
        Graph(
            title="Time of one read",
            lines=quantiles("pdray_kv_transfer_seconds")
            | quantiles("pdray_kv_transfer_wait_seconds", legend="in turn, "),
            unit=SECONDS,
        ),
        Graph(
            title="Handoff",
            text="From the end of a prompt's last step to its first decode step that can run.",
            lines=quantiles("pdray_handoff_seconds"),
            unit=SECONDS,
        ),
        Graph(
            title="Share of bytes hidden behind prefill",
            lines={
                "hidden": f"{rate('pdray_kv_transfer_hidden_bytes_total')}"
                f" / {rate('pdray_kv_transfer_bytes_total')}"
            },
            unit=SHARE,
        ),
        Graph(
            title="Did not move: found at the reader",
            lines={"{{pool}}": rate("pdray_kv_transfer_found_bytes_total", "pool")},
            unit=BYTES_PER_S,
        ),
        Graph(
            title="Migrations",
            lines={"{{outcome}}": rate("pdray_migrations_total", "outcome")},
            is_stacked=True,
        ),
    ],
    "Tiers": [
        Graph(
            title="KV in tiers",
            lines={"{{pool}} {{tier}}": "sum by (pool, tier) (pdray_kv_tier_bytes)"},
            unit=BYTES,
        ),
        Graph(
            title="Blocks per second",
            lines={
                "{{tier}} copied down": rate("pdray_kv_tier_demoted_blocks_total", "tier"),
                "{{tier}} found": rate("pdray_kv_tier_hit_blocks_total", "tier"),
                "{{tier}} failed": rate("pdray_kv_tier_failed_blocks_total", "tier"),
            },
        ),
        Graph(
            title="Time to bring a prompt's blocks back",
            lines=quantiles("pdray_kv_promotion_seconds"),
            unit=SECONDS,
        ),
    ],
    "Failures": [
        Graph(
            title="Requests placed again, per second",
            text="Their worker was lost and they went on elsewhere.",
            lines={"placed again": rate("pdray_requests_placed_again_total")},
        ),
        Graph(
            title="Preemptions per second",
            lines={"{{pool}}": rate("pdray_num_preemptions_total", "pool")},
        ),
        Graph(
            title="Blocks lost and in quarantine",
            text="Lost ones are a leak: always 0. Quarantined ones may still be read or written.",
            lines={
                "{{pool}} lost": "sum by (pool) (pdray_kv_unaccounted_blocks)",
                "{{pool}} quarantined": 'sum by (pool) (pdray_kv_blocks{state="quarantined"})',
            },
        ),
        Graph(
            title="Silence of a request that moves",
            lines=quantiles("pdray_migration_pause_seconds"),
            unit=SECONDS,
        ),
    ],
}


def panel(graph: Graph) -> Panel:
    built = (
        Panel()
        .title(graph.title)
        .description(graph.text)
        .datasource(SOURCE)
        .unit(graph.unit)
        .min(0)
        .span(WIDTH)
        .height(HEIGHT)
        .fill_opacity(20 if graph.is_stacked else 0)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if graph.is_stacked:
        built.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    for number, (legend, query) in enumerate(graph.lines.items()):
        built.with_target(
            Dataquery()
            .ref_id(chr(ord("A") + number))
            .datasource(SOURCE)
            .expr(query)
            .legend_format(legend)
        )
    return built


def dashboard_json() -> str:
    board = (
        Dashboard("pdray")
        .uid("pdray")
        .tags(["pdray", "llm"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for title, graphs in ROWS.items():
        board.with_row(Row(title))
        for graph in graphs:
            board.with_panel(panel(graph))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard_json())
