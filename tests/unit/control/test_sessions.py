"""Where a conversation's last request went."""

from __future__ import annotations

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.control.sessions import Sessions
from pdray.core.placement import Placement
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.policy.placement.least_loaded import LeastLoaded
from tests.fleet_factories import make_ask, make_info

P, D = WorkerId("p"), WorkerId("d")


def test_the_decode_worker_of_the_last_turn_is_named_then_its_prefill_worker_then_nobody() -> None:
    control = ControlPlane(
        ControlConfig(max_queued_requests=2, queue_timeout_s=10.0), LeastLoaded()
    )
    for name, role in ((P, Role.PREFILL), (D, Role.DECODE)):
        control.worker_joined(make_info(name, role), 0.0)
    turn = make_ask("1", session_id="s")
    assert control.fleet.session_worker(turn) is None
    (placement,) = control.place("f", [turn], 0.0)
    assert isinstance(placement, Placement)
    assert control.fleet.session_worker(make_ask("2", session_id="s")) == D
    assert control.fleet.session_worker(make_ask("2", session_id="another")) is None
    assert control.fleet.session_worker(make_ask("2")) is None
    control.worker_draining(D, 1.0)
    assert control.fleet.session_worker(turn) == P
    control.worker_left(P, 1.0)
    assert control.fleet.session_worker(turn) is None


def test_what_nobody_spoke_of_for_the_longest_is_forgotten() -> None:
    sessions = Sessions(2)
    for name in ("a", "b", "a", "c"):
        sessions.put(name, P, D)
    assert [sessions.get(name) for name in "abc"] == [(P, D), (None, None), (P, D)]
    assert len(sessions) == 2
