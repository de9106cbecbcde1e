from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from pdray.cluster.messages import ControllerStatus, WorkerStatus
from pdray.cluster.telemetry import controller_text, slo_text
from pdray.config_sections import SloConfig
from pdray.core.snapshot import Role, WorkerState
from pdray.core.startup import StartupTimes

READY = WorkerStatus(
    pool="decode",
    index=0,
    role=Role.DECODE,
    node_group="laptop",
    state=WorkerState.READY,
    worker_id=None,
    progress="ready",
    num_failures=0,
    last_failure=None,
    is_hopeless=False,
)
STARTUP = StartupTimes(process_s=1.0, imports_s=5.0, weights_s=2.0, warmup_s=0.5)
STARTING = replace(
    READY, index=1, state=WorkerState.STARTING, progress="loading", last_failure="no memory"
)


def status_of(*workers: WorkerStatus, layout_mismatch: str | None = None) -> ControllerStatus:
    return ControllerStatus(
        application="app",
        generation="g",
        is_retired=False,
        workers=workers,
        frontend_ids=(),
        num_queued=3,
        num_in_flight=5,
        max_in_flight=8,
        num_placed_by_how={"disaggregated": 7, "short": 2},
        desired_workers={"prefill": 1, "decode": 4},
        idle_pools=("decode",),
        can_place=False,
        layout_mismatch=layout_mismatch,
    )


def test_an_application_is_ready_when_every_place_is() -> None:
    assert status_of(READY, READY).is_ready
    assert status_of(READY, READY).missing == ""
    assert not status_of(READY, STARTING).is_ready


def test_what_is_missing_says_which_worker_and_why() -> None:
    missing = status_of(READY, STARTING).missing
    assert missing == "decode worker 1 (loading; failed before: no memory)"


def test_a_hopeless_place_is_found() -> None:
    hopeless = replace(STARTING, is_hopeless=True)
    assert status_of(READY, STARTING).hopeless is None
    assert status_of(READY, hopeless).hopeless == (
        "worker 1 of pool decode does not start: no memory"
    )


def test_workers_that_cannot_work_together_are_hopeless_though_all_are_ready() -> None:
    assert status_of(READY, READY, layout_mismatch="unlike").hopeless == "unlike"


def test_the_controllers_gauges_are_a_valid_exposition() -> None:
    started = replace(READY, startup=STARTUP)
    text = controller_text(status_of(started, STARTING, STARTING)).decode()
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples == {
        ("pdray_num_requests_queued", ()): 3,
        ("pdray_num_requests_placed", ()): 5,
        ("pdray_max_requests_placed", ()): 8,
        ("pdray_requests_placed_total", ("disaggregated",)): 7,
        ("pdray_requests_placed_total", ("short",)): 2,
        ("pdray_idle_pool", ("decode",)): 1,
        ("pdray_desired_workers", ("prefill",)): 1,
        ("pdray_desired_workers", ("decode",)): 4,
        ("pdray_num_workers", ("decode", "ready")): 1,
        ("pdray_num_workers", ("decode", "starting")): 2,
        ("pdray_worker_startup_seconds", ("decode", "0", "process")): 1,
        ("pdray_worker_startup_seconds", ("decode", "0", "imports")): 5,
        ("pdray_worker_startup_seconds", ("decode", "0", "weights")): 2,
        ("pdray_worker_startup_seconds", ("decode", "0", "warmup")): 0.5,
        ("pdray_worker_startup_seconds", ("decode", "0", "meeting")): 0,
    }


def test_the_targets_are_a_valid_exposition() -> None:
    text = slo_text(SloConfig(ttft_s=1.5, itl_s=0.05, percentile=0.9)).decode()
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples == {
        "pdray_slo_ttft_seconds": 1.5,
        "pdray_slo_itl_seconds": 0.05,
        "pdray_slo_percentile": 0.9,
    }
