from __future__ import annotations

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.placement import Placement, Refusal
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from tests.fleet_factories import SLO, make_ask, make_info, make_policy, make_snapshot

TIMES = StepTime(
    base_s=0.0, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.001, context_token_s=0.0
)


def control_with(backlog_tokens: int, refuse_after_s: float | None) -> ControlPlane:
    config = ControlConfig(
        max_queued_requests=8, queue_timeout_s=60.0, refuse_after_s=refuse_after_s
    )
    control = ControlPlane(config, make_policy("cost"))
    for name, role in (("p", Role.PREFILL), ("d", Role.DECODE)):
        control.worker_joined(make_info(name, role), 0.0)
        control.snapshot(make_snapshot(name, step_time=TIMES), 0.0)
    snapshot = make_snapshot("p", step_time=TIMES, prefill_backlog_tokens=backlog_tokens)
    control.snapshot(snapshot, 1.0)
    return control


def test_a_request_that_would_wait_past_the_target_is_refused_with_how_long_to_stay_away() -> None:
    control = control_with(backlog_tokens=9000, refuse_after_s=SLO.ttft_s)
    (answer,) = control.place("f", [make_ask(num_prompt_tokens=900)], 1.0)
    assert isinstance(answer, Refusal)
    assert "9.0 s, and the target is 2 s" in answer.reason
    assert answer.retry_after_s == pytest.approx(7.0)
    assert control.num_in_flight == control.num_queued == 0


def test_a_long_prompt_is_not_refused_for_its_own_length() -> None:
    control = control_with(backlog_tokens=1900, refuse_after_s=SLO.ttft_s)
    (answer,) = control.place("f", [make_ask(num_prompt_tokens=1000)], 1.0)
    assert isinstance(answer, Placement)


def test_without_early_refusal_requests_wait_however_long_it_takes() -> None:
    control = control_with(backlog_tokens=9000, refuse_after_s=None)
    (answer,) = control.place("f", [make_ask(num_prompt_tokens=900)], 1.0)
    assert isinstance(answer, Placement)
