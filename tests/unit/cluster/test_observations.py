"""What operators see is what frontends and workers told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pdray.cluster.messages import ControllerStatus, WorkerStatus
from pdray.cluster.observations import Observations
from pdray.config import PdrayConfig, parse_config
from pdray.control.controller import ControlPlane
from pdray.control_plane import make_control_plane
from pdray.core.overview import Overview
from pdray.core.request import WorkerId
from pdray.core.snapshot import BytesRead, Role, WorkerState
from pdray.core.step_time import StepTime
from pdray.metrics.window import LatencyCounts, bucket_of
from tests.fleet_factories import make_ask, make_info, make_snapshot

TIMES = StepTime(
    base_s=0.01, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.002, context_token_s=0.0
)


@pytest.fixture
def config() -> PdrayConfig:
    pool = {"node_groups": ["laptop"], "engine": {"kv_cache_bytes": "4MiB", "max_batch_size": 5}}
    return parse_config(
        {
            "model": "demo",
            "node_groups": {"laptop": {}},
            "pools": {"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}},
        }
    )


@pytest.fixture
def control(config: PdrayConfig) -> ControlPlane:
    control = make_control_plane(config)
    for name, role in (("p", Role.PREFILL), ("d", Role.DECODE)):
        control.worker_joined(make_info(name, role), 100.0)
        control.snapshot(make_snapshot(name, step_time=TIMES, num_held_blocks=50), 100.0)
    return control


def worker_of(pool: str, worker_id: str | None) -> WorkerStatus:
    return WorkerStatus(
        pool=pool,
        index=0,
        role=Role.parse(pool),
        node_group="laptop",
        state=WorkerState.READY if worker_id else WorkerState.STARTING,
        worker_id=None if worker_id is None else WorkerId(worker_id),
        progress="loads weights",
        num_failures=0,
        last_failure=None,
        is_hopeless=False,
    )


def look(
    seen: Observations,
    config: PdrayConfig,
    control: ControlPlane,
    now: float,
    decode_id: str | None = "d",
) -> Overview:
    status = ControllerStatus(
        application="app",
        generation="1",
        is_retired=False,
        workers=(worker_of("prefill", "p"), worker_of("decode", decode_id)),
        frontend_ids=("f",),
        num_queued=control.num_queued,
        num_in_flight=control.num_in_flight,
        max_in_flight=control.max_in_flight,
        num_placed_by_how=control.num_placed_by_how,
        desired_workers=control.desired_workers,
        idle_pools=(),
        can_place=False,
        layout_mismatch=None,
    )
    return seen.overview(config, control, status, (), now)


def test_latencies_of_the_last_minute_are_shown_and_older_ones_only_in_the_history(
    config: PdrayConfig, control: ControlPlane
) -> None:
    seen = Observations(100.0)
    for now, ttft_s in ((100.0, 5.0), (190.0, 0.4), (196.0, 0.4)):
        counts = LatencyCounts(
            ttft=Counter({bucket_of(ttft_s): 1}), itl=Counter({bucket_of(0.05): 9})
        )
        seen.heard_latencies(counts, now)
    now = look(seen, config, control, 200.0)
    assert now.ttft is not None
    assert now.itl is not None
    assert (now.ttft.count, now.itl.count) == (2, 18)
    assert now.ttft.max_s == pytest.approx(0.4, rel=0.03)
    assert now.window_s == 55.0
    assert now.tokens_per_s == pytest.approx(20 / 55.0)
    assert [round(each.ago_s) for each in now.history if each.ttft_p50_s is not None] == [95, 5, 0]
    assert now.history[-1].requests_per_s == 1 / 5.0


def test_a_young_controllers_rates_are_over_its_own_time(
    config: PdrayConfig, control: ControlPlane
) -> None:
    seen = Observations(198.0)
    seen.heard_latencies(LatencyCounts(ttft=Counter({0: 4}), itl=Counter()), 199.0)
    assert look(seen, config, control, 200.0).requests_per_s == 2.0


def test_pairs_have_what_was_read_since_the_worker_was_first_heard_of(
    config: PdrayConfig, control: ControlPlane
) -> None:
    seen = Observations(100.0)
    for now, num_bytes in ((100.0, 500), (101.0, 800), (102.0, 800), (103.0, 1500)):
        read = (BytesRead(source_pool="prefill", num_bytes=num_bytes),)
        seen.heard_snapshot("decode", replace(make_snapshot("d"), bytes_read=read), now)
    (pair,) = look(seen, config, control, 110.0).pairs
    assert (pair.source, pair.target, pair.num_bytes) == ("prefill", "decode", 1000)
    assert pair.bytes_per_s == 100.0


def test_a_worker_is_shown_with_its_numbers_and_one_that_starts_with_what_it_does(
    config: PdrayConfig, control: ControlPlane
) -> None:
    control.place("f", [make_ask(num_prompt_tokens=900)], 100.0)
    prefill, _ = look(Observations(100.0), config, control, 101.0).workers
    assert (prefill.role, prefill.prefill_backlog_tokens) == ("prefill", 900)
    assert prefill.kv_utilization == 0.5
    assert prefill.step_s == pytest.approx(0.012)
    assert prefill.note == ""
    _, starting = look(Observations(100.0), config, control, 101.0, decode_id=None).workers
    assert (starting.state, starting.note) == ("starting", "loads weights")
    assert starting.max_batch_size == 5


def test_a_silent_worker_is_stale_and_a_flipped_one_has_its_new_role(
    config: PdrayConfig, control: ControlPlane
) -> None:
    control.fleet.set_role(WorkerId("d"), Role.PREFILL)
    control.snapshot(make_snapshot("d"), 119.0)
    control.tick(120.0)
    prefill, decode = look(Observations(100.0), config, control, 120.0).workers
    assert (prefill.state, decode.state) == ("stale", "ready")
    assert decode.role == "prefill"
