"""Why a request went where it went."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdray.cli.main import main
from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.errors import EventLogError
from pdray.core.placement import MoveAsk, Placement, Queued, Refusal
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from pdray.event_log.explain import explain
from pdray.event_log.recorder import Recorder
from pdray.policy.scaling.base import GroupCost, PoolSetup, ScalingSetup
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot
from tests.scaling_factories import make_scaling_policy

TIMES = StepTime(
    base_s=0.01, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.001, context_token_s=0.0
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two choices of one response are placed, another waits in the queue; between them pools are
    looked at, and one decode asks for another worker."""
    pool = PoolSetup(
        name="decode",
        role=Role.DECODE,
        node_groups=("laptop",),
        replicas=1,
        policy=make_scaling_policy(targets={"kv_utilization": 0.5}),
    )
    scaling = ScalingSetup(
        pools=(pool,), groups={"laptop": GroupCost(num_gpus=0.0, cost_per_hour=None)}
    )
    control = ControlPlane(
        ControlConfig(max_queued_requests=8, queue_timeout_s=5.0, scaling=scaling),
        make_policy("cost"),
    )
    recorder = Recorder(
        control, tmp_path, "app", life="1", max_bytes=10_000_000, unix_time=lambda: 0.0
    )
    for name, role in (("p", Role.PREFILL), ("q", Role.PREFILL), ("d", Role.DECODE)):
        control.worker_joined(make_info(name, role, max_batch_size=1), 0.0)
        backlog = 900 if name == "p" else 0
        control.snapshot(make_snapshot(name, step_time=TIMES, prefill_backlog_tokens=backlog), 0.0)
    ids = ("cmpl-1-0", "cmpl-1-1", *(f"other-{index}" for index in range(4)))
    answers = control.place("f", [make_ask(each, num_prompt_tokens=900) for each in ids], 1.0)
    assert isinstance(answers[-1], Queued)
    control.scale(1.7e9, 1.0)
    control.move(
        "f",
        [MoveAsk(request_id="cmpl-1-0", source_id=WorkerId("d"), max_total_tokens=910)],
        1.5,
    )
    control.place("f", [make_ask("cmpl-10-0", priority=-1)], 2.0)
    control.finished("f", ["cmpl-1-0"], 3.0)
    control.place("f", [make_ask("cmpl-2-0", num_prompt_tokens=5000)], 4.0)
    recorder.close()
    return tmp_path


def test_a_placement_comes_with_the_runners_up_and_what_was_known(folder: Path) -> None:
    (one,) = explain(folder, "cmpl-1-0")
    assert isinstance(one.answer, Placement)
    assert (one.asked_at, one.answered_at, one.policy) == (1.0, 1.0, "Cost")
    assert [each.prefill_id for each in one.candidates] == ["q", "p"]
    assert one.answer.prefill is not None
    assert one.answer.prefill.worker_id == "q"
    assert one.candidates[0].queue_s == 0.0
    assert one.candidates[1].queue_s == pytest.approx(0.9, rel=0.1)
    known = {each.worker_id: each for each in one.workers}
    assert known["p"].prefill_backlog_tokens == 900
    assert known["q"].step_time == TIMES


def test_a_responses_id_finds_all_its_choices_and_no_others(folder: Path) -> None:
    found = explain(folder, "cmpl-1")
    assert [each.answer.request_id for each in found] == ["cmpl-1-0", "cmpl-1-1"]


def test_one_that_waited_was_answered_later(folder: Path) -> None:
    (one,) = explain(folder, "cmpl-10")
    assert (one.asked_at, one.answered_at) == (2.0, 3.0)
    assert isinstance(one.answer, Placement)


def test_a_refused_one_has_its_reason(folder: Path) -> None:
    (one,) = explain(folder, "cmpl-2")
    assert isinstance(one.answer, Refusal)
    assert one.candidates == ()


def test_an_unknown_one_is_said_to_be_unknown(folder: Path) -> None:
    with pytest.raises(EventLogError, match="no request 'cmpl-3'"):
        explain(folder, "cmpl-3")


def test_the_command_shows_both_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "cmpl-1-0", "--log", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "cmpl-1-0: 900 prompt tokens, max_tokens 10, priority 0; answered after 0 ms" in shown
    assert "prompt on q, decode on d" in shown
    assert "what Cost chose from, the best first" in shown
    assert "what it knew" in shown


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "r", "--log", str(tmp_path)]) == 1
    assert "pdray: no request 'r' in the event log" in capsys.readouterr().err


def test_decisions_on_pools_can_be_read_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", "explain", "--log", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "decode stays at 1: kv_utilization 0, target 0.5: 0.00 workers" in out
    assert "1 take work, 0 start, 0 are warm" in out
    assert main(["scaling", "explain", "--log", str(folder), "--changes"]) == 0
    assert capsys.readouterr().out == ""
