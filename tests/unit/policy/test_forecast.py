from __future__ import annotations

import pytest

from pdray.control.fleet import Fleet, WorkerRecord
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from pdray.policy.forecast import (
    UNMEASURED,
    fits_in_a_step,
    forecast_decode,
    forecast_prefill,
    step_time_of,
)
from tests.fleet_factories import make_ask, make_info, make_snapshot

TIMES = StepTime(
    base_s=0.01, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.002, context_token_s=1e-5
)
ITL_S = 0.1


def worker_with(
    *, backlog_tokens: int = 0, num_decoding: int = 0, context_tokens: int = 0
) -> WorkerRecord:
    fleet = Fleet()
    record = fleet.add(make_info("w", Role.MIXED, max_batch_size=4), 0.0)
    snapshot = make_snapshot("w", prefill_backlog_tokens=backlog_tokens, step_time=TIMES)
    fleet.update(snapshot, 0.0)
    fleet.book_decode(WorkerId("w"), num_decoding, context_tokens)
    return record


def test_a_prompt_waits_for_the_tokens_before_it_in_steps_of_the_workers_budget() -> None:
    worker = worker_with(backlog_tokens=600)  # two steps of 512 at most
    forecast = forecast_prefill(worker, make_ask(num_prompt_tokens=100), 0, TIMES, ITL_S)
    assert forecast.queue_s == pytest.approx(600 * 0.001 + 2 * 0.01)
    assert forecast.compute_s == pytest.approx(0.01 + 100 * 0.001)
    assert forecast.others_s == 0.0
    assert forecast.ttft_s == forecast.queue_s + forecast.compute_s


def test_a_prompt_pays_for_every_step_that_it_needs() -> None:
    forecast = forecast_prefill(worker_with(), make_ask(num_prompt_tokens=1025), 0, TIMES, ITL_S)
    assert forecast.compute_s == pytest.approx(3 * 0.01 + 1025 * 0.001)


def test_what_is_cached_is_not_computed() -> None:
    forecast = forecast_prefill(worker_with(), make_ask(num_prompt_tokens=100), 60, TIMES, ITL_S)
    assert forecast.compute_s == pytest.approx(0.01 + 40 * 0.001)


def test_beside_decodes_a_prompt_has_only_what_they_leave_of_a_step() -> None:
    worker = worker_with(num_decoding=2, context_tokens=1000)
    forecast = forecast_prefill(worker, make_ask(num_prompt_tokens=100), 0, TIMES, ITL_S)
    share = 1 - (0.01 + 2 * 0.002 + 1000 * 1e-5) / ITL_S
    assert forecast.compute_s == pytest.approx((0.01 + 0.1) / share)
    assert forecast.others_s == pytest.approx(2 * (0.01 + 0.1)), "both of them wait for it"


def test_each_decode_makes_the_step_of_all_others_longer() -> None:
    worker = worker_with(num_decoding=2, context_tokens=200)
    forecast = forecast_decode(worker, make_ask(num_prompt_tokens=100, max_tokens=10), TIMES, 0.0)
    assert forecast.itl_s == pytest.approx(0.01 + 3 * 0.002 + (200 + 105) * 1e-5)
    assert forecast.decode_s == pytest.approx(10 * forecast.itl_s)
    assert forecast.others_s == pytest.approx(2 * 10 * (0.002 + 105 * 1e-5))
    assert forecast.wait_s == 0.0


def test_a_decode_waits_for_a_seat_and_slows_down_where_prompts_run() -> None:
    worker = worker_with(num_decoding=4)
    ask = make_ask(max_tokens=10)
    alone = forecast_decode(worker, ask, TIMES, 0.0)
    assert alone.wait_s == pytest.approx(alone.decode_s / 4), "one of four leaves by then"
    assert forecast_decode(worker, ask, TIMES, 0.5).decode_s == pytest.approx(2 * alone.decode_s)


def test_the_load_of_prompts_is_forgotten() -> None:
    worker = worker_with()
    worker.update(make_snapshot("w", step_time=TIMES), 0.0)
    worker.add_prefill(5000, now=0.0)  # 500 a second of late
    assert worker.prompt_load == pytest.approx(0.5, rel=0.01)
    worker.update(make_snapshot("w", step_time=TIMES), 30.0)
    assert worker.prompt_load == pytest.approx(0.5 * 0.0498, rel=0.01)


def test_a_phase_that_a_worker_has_not_run_is_as_on_others() -> None:
    fleet = Fleet()
    worker = fleet.add(make_info("w", Role.DECODE), 0.0)
    assert step_time_of(worker) is UNMEASURED
    decodes = StepTime(
        base_s=0.02, prefill_token_s=0, prefill_pair_s=0, decode_s=0.003, context_token_s=0
    )
    fleet.update(make_snapshot("w", step_time=decodes), 0.0)
    known = step_time_of(worker, TIMES)
    assert (known.base_s, known.decode_s) == (0.02, 0.003)
    assert known.prefill_token_s == TIMES.prefill_token_s


@pytest.mark.parametrize(("num_tokens", "fits"), [(86, True), (87, False)])
def test_a_prompt_fits_in_a_step_up_to_the_target(num_tokens: int, fits: bool) -> None:
    worker = worker_with(num_decoding=2)  # 10 ms, 4 ms for two, 86 ms left
    decode = forecast_decode(worker, make_ask(num_prompt_tokens=16 + num_tokens), TIMES, 0.0)
    assert fits_in_a_step(decode, 16 + num_tokens, 16, TIMES, ITL_S) is fits
