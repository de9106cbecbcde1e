"""How many workers each signal asks for, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.core.snapshot import Role
from pdray.policy.signals import DEFAULT_TARGETS, read_signals, signal_of
from tests.scaling_factories import Pool, make_worker

PREFILL = Role.PREFILL


def workers_for(pool: Pool, signal: str, target: float) -> float:
    return signal_of(signal)(pool.view, target).workers


def test_a_backlog_asks_for_workers_that_compute_it_within_a_share_of_the_ttft() -> None:
    # 2 x 3,000 tokens of 1 ms are 6 s; half a second each takes 12 workers.
    pool = Pool(workers=2 * (make_worker(PREFILL, prefill_backlog_tokens=3000),), role=PREFILL)
    reading = signal_of("prefill_backlog")(pool.view, 0.5)
    assert reading.value == pytest.approx(3.0)
    assert reading.workers == pytest.approx(12.0)


def test_queued_prompts_count_only_where_prompts_are_what_they_wait_for() -> None:
    idle = Pool(workers=(make_worker(PREFILL),), role=PREFILL, num_queued=9, queued_tokens=9000)
    assert workers_for(idle, "prefill_backlog", 0.5) == 0.0
    busy = replace(idle, workers=(make_worker(PREFILL, prefill_backlog_tokens=1000),))
    assert workers_for(busy, "prefill_backlog", 0.5) == pytest.approx(20.0)


def test_a_load_asks_for_workers_that_are_busy_for_their_share() -> None:
    pool = Pool(workers=2 * (make_worker(PREFILL),), role=PREFILL, load=0.7)
    assert workers_for(pool, "prefill_load", 0.7) == pytest.approx(2.0)


def test_decodes_ask_for_workers_whose_steps_keep_the_itl() -> None:
    # A step of b decodes takes 10 + 10 b ms: 8 of them take 90.
    pool = Pool(workers=(make_worker(num_running=20),))
    assert workers_for(pool, "decode_step", 0.9) == pytest.approx(20 / 8)


def test_queued_requests_count_as_decodes_only_where_batches_are_full() -> None:
    pool = Pool(workers=(make_worker(num_running=8, fullness=0.5),), num_queued=8)
    assert workers_for(pool, "decode_step", 0.9) == pytest.approx(1.0)
    full = replace(pool, workers=(make_worker(num_running=8, fullness=1.0),))
    assert workers_for(full, "decode_step", 0.9) == pytest.approx(2.0)


def test_memory_in_use_asks_for_more_of_it() -> None:
    pool = Pool(workers=2 * (make_worker(kv_utilization=0.85),))
    assert workers_for(pool, "kv_utilization", 0.85) == pytest.approx(2.0)


def test_whatever_workers_report_can_be_a_signal() -> None:
    pool = Pool(workers=2 * (make_worker(num_running=6),))
    assert workers_for(pool, "worker.num_running", 4.0) == pytest.approx(3.0)


def test_an_unknown_signal_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="known: batch_size, decode_step"):
        signal_of("gpu_heat")


def test_a_pool_without_workers_says_nothing() -> None:
    assert read_signals(Pool(workers=()).view, DEFAULT_TARGETS[Role.DECODE]) == ()


@given(
    running=st.integers(0, 200),
    more=st.integers(0, 50),
    backlog=st.integers(0, 20_000),
    kv=st.floats(0.0, 1.0),
    num_workers=st.integers(1, 8),
    role=st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED]),
)
def test_no_signal_asks_for_fewer_when_there_is_more_to_do(
    running: int, more: int, backlog: int, kv: float, num_workers: int, role: Role
) -> None:
    def demand(extra: int) -> float:
        worker = make_worker(
            role,
            num_running=running + extra,
            prefill_backlog_tokens=backlog + 100 * extra,
            kv_utilization=min(kv + extra / 100, 1.0),
            fullness=(running + extra) / 32,
        )
        pool = Pool(workers=num_workers * (worker,), role=role, num_queued=running + extra)
        readings = read_signals(pool.view, DEFAULT_TARGETS[role])
        return max(reading.workers for reading in readings)

    assert demand(more) >= demand(0) - 1e-9
