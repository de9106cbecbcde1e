"""The dashboard and the alerts ask for what the server exports, as it exports it. That a real
server exports the same: ``tests/cluster/test_end_to_end.py``."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from configs.deploy.grafana.dashboard import DASHBOARD, dashboard_json
from pdray.cluster.telemetry import controller_text, slo_text
from pdray.config_sections import SloConfig
from pdray.core.snapshot import TierSnapshot, WorkerState
from pdray.metrics.prometheus import FrontendMetrics, WorkerMetrics
from tests.promql import DEPLOY, Asked, alerts, asked, panels, queries
from tests.unit.cluster.test_status import READY, STARTUP, status_of

NO_TIER = TierSnapshot(
    tier="host", num_blocks=0, num_bytes=0, num_demoted=0, num_promoted=0, num_failed=0
)
EVERYTHING = [each for query in queries() for each in asked(query)]


def exported() -> dict[str, set[str]]:
    """The labels of every sample of a server."""
    frontend, worker = FrontendMetrics("replica"), WorkerMetrics("worker", "decode")
    worker.tiers.set([NO_TIER])
    worker.tiers.promoted(0, 0.0)
    worker.transfer_finished(
        0.0,
        queued_s=0.0,
        transport="nixl",
        source_pool="prefill",
        num_blocks=0,
        num_bytes=0,
        is_hidden=False,
    )
    texts = [controller_text(status_of(replace(READY, startup=STARTUP))), slo_text(SloConfig())]
    return {
        sample.name: set(sample.labels)
        for text in [*texts, frontend.text(), worker.text()]
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_the_dashboard_is_what_its_script_makes() -> None:
    assert DASHBOARD.read_text() == dashboard_json(), "run configs/deploy/grafana/dashboard.py"


def test_every_metric_and_label_that_is_asked_for_is_exported() -> None:
    assert EVERYTHING
    known = exported()
    unknown = [each for each in EVERYTHING if each.labels - known.get(each.metric, set())]
    assert unknown == []
    assert {each.metric for each in EVERYTHING} <= known.keys()


def test_counters_are_asked_for_as_rates_and_gauges_as_they_are() -> None:
    def is_counter(each: Asked) -> bool:
        return each.metric.endswith(("_total", "_bucket", "_sum", "_count"))

    assert [each for each in EVERYTHING if is_counter(each) != each.is_rated] == []


def test_legends_name_labels_that_their_queries_keep() -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = asked(target["expr"].replace("$__rate_interval", "1m"))
            assert named <= kept[0].labels, (panel["title"], target["legendFormat"])


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_name_labels_that_their_queries_keep_and_panels_that_are_there(
    rule: dict[str, object],
) -> None:
    texts = yaml.safe_dump(rule["annotations"], width=1000)
    kept = asked(str(rule["expr"]))
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= kept[0].labels
    description = dict(rule["annotations"])["description"]  # type: ignore[call-overload]
    titles = {panel["title"] for panel in panels()}
    assert set(re.findall(r'"([^"]+)"', description)) <= titles


def test_the_scrape_config_loads_the_rules_and_finds_the_metrics() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yaml").read_text())
    assert [(DEPLOY / "prometheus" / name).exists() for name in scrape["rule_files"]] == [True]
    (job,) = scrape["scrape_configs"]
    assert job["metrics_path"] == "/metrics"


def test_a_worker_that_does_not_get_ready_is_in_a_state_that_the_alert_looks_for() -> None:
    (rule,) = [rule for rule in alerts() if rule["alert"] == "PdrayWorkersMissing"]
    (states,) = re.findall(r'state=~"([^"]+)"', rule["expr"])
    assert set(states.split("|")) == {WorkerState.STARTING.value, WorkerState.FAILED.value}
