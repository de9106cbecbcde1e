"""What a result says in rows, and over time."""

from __future__ import annotations

import pytest

from pdray.core.mode import Mode
from pdray.simulation.report import intervals, rows_of
from pdray.simulation.simulator import simulate
from tests.simulated import Plan, request_of, scenario_of


def test_a_course_has_what_came_and_who_was_there_in_each_interval() -> None:
    requests = [request_of(at, 100, 2) for at in (1.0, 2.0, 25.0)]
    scaler = Plan({0.0: {"mixed": 1}, 10.0: {"mixed": 2}})
    scenario = scenario_of(requests, {"mixed": 1}, mode=Mode.SOFT, scaler=scaler, duration_s=39.0)
    course = intervals(simulate(scenario), 10.0)
    assert [each.begins_s for each in course] == [0.0, 10.0, 20.0, 30.0]
    assert [each.arrived_rps for each in course] == [0.2, 0.0, 0.1, 0.0]
    assert [each.slo_attainment for each in course] == [1.0, None, 1.0, None]
    # The second worker takes 5 s to start.
    assert [each.num_workers["mixed"] for each in course] == pytest.approx([1.0, 1.5, 2.0, 2.0])


def test_the_rows_have_attainment_latencies_and_gpu_hours() -> None:
    scenario = scenario_of([request_of(0.0, 100, 3)], {"mixed": 2}, mode=Mode.SOFT, duration_s=1800)
    rows = dict(rows_of(simulate(scenario)))
    assert rows["requests"] == "1"
    assert rows["SLO attainment"] == "100.00%"
    assert rows["TTFT P50 / P90 / P99"] == "20 / 20 / 20 ms"
    assert rows["GPU-hours"] == "1.0"
    assert rows["  mixed on cpu"] == "1.0"
    assert "cost" not in rows
