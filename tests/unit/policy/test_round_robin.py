from __future__ import annotations

from pdray.control.fleet import Fleet
from pdray.core.snapshot import Role
from pdray.policy.placement.round_robin import RoundRobin
from tests.fleet_factories import make_ask, make_info


def test_every_worker_has_its_turn_and_a_newcomer_goes_first() -> None:
    fleet = Fleet()
    for worker_id in ("p0", "p1"):
        fleet.add(make_info(worker_id, Role.PREFILL), 0.0)
    for worker_id in ("d0", "d1", "d2"):
        fleet.add(make_info(worker_id, Role.DECODE), 0.0)
    policy = RoundRobin()
    choices = [policy.place(fleet, make_ask()) for _ in range(6)]
    assert [c.prefill_id for c in choices if c] == ["p0", "p1", "p0", "p1", "p0", "p1"]
    assert [c.decode_ids[0] for c in choices if c] == ["d0", "d1", "d2", "d0", "d1", "d2"]
    fleet.add(make_info("p2", Role.PREFILL), 0.0)
    newcomer = policy.place(fleet, make_ask())
    assert newcomer is not None
    assert newcomer.prefill_id == "p2"
