from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.control.fleet import Fleet
from pdray.control.roles import Roles
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from pdray.policy.roles import COOLDOWN_S, HOLD_S, RoleBounds
from tests.fleet_factories import SLO, make_info, make_snapshot

TIMES = StepTime(
    base_s=0.01, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.01, context_token_s=0.0
)
BOUNDS = {
    Role.PREFILL: RoleBounds(min_workers=1, max_workers=3),
    Role.DECODE: RoleBounds(min_workers=1, max_workers=3),
}


def fleet_of(num_prefill: int, num_decode: int) -> Fleet:
    fleet = Fleet()
    for role, num in ((Role.PREFILL, num_prefill), (Role.DECODE, num_decode)):
        for i in range(num):
            name = f"{str(role.name)[0].lower()}{i}"
            fleet.add(make_info(name, role, max_batch_size=64), 0.0)
            tell(fleet, name)
    return fleet


def tell(fleet: Fleet, name: str, backlog_tokens: int = 0) -> None:
    snapshot = make_snapshot(name, step_time=TIMES, prefill_backlog_tokens=backlog_tokens)
    fleet.update(snapshot, 0.0)


def load_prefill(fleet: Fleet, seconds: float) -> None:
    for worker in fleet.ready(Role.PREFILL):
        tell(fleet, worker.info.worker_id, int(seconds * 1000))


def flips_within(roles: Roles, seconds: float, *, start: float = 0.0) -> list[tuple[float, str]]:
    times = [start + i * 0.25 for i in range(int(seconds * 4) + 1)]
    flips = [(now, roles.tick(now)) for now in times]
    return [(now, flip.worker_id) for now, flip in flips if flip is not None]


def test_an_idle_decode_worker_helps_prefill_after_it_was_short_for_a_while() -> None:
    fleet = fleet_of(1, 2)
    load_prefill(fleet, 5.0)
    fleet.book_decode(WorkerId("d0"), 2, 100)
    ((at, worker_id),) = flips_within(Roles(fleet, SLO, BOUNDS), HOLD_S + 1.0)
    assert at == pytest.approx(HOLD_S, abs=0.5)
    assert worker_id == "d1", "the one with less to do"
    assert {w.info.worker_id for w in fleet.ready(Role.PREFILL)} == {"p0", "d1"}
    assert {w.info.worker_id for w in fleet.ready(Role.DECODE)} == {"d0"}
    fleet.check_integrity()


def test_a_full_decode_pool_gets_an_idle_prefill_worker() -> None:
    fleet = fleet_of(2, 1)
    fleet.book_decode(WorkerId("d0"), 30, 100)  # steps of 0.31 s
    ((_, worker_id),) = flips_within(Roles(fleet, SLO, BOUNDS), HOLD_S + 1.0)
    assert worker_id == "p0"
    assert len(fleet.ready(Role.DECODE)) == 2


def test_a_short_need_changes_nothing() -> None:
    fleet = fleet_of(1, 2)
    roles = Roles(fleet, SLO, BOUNDS)
    for second in range(0, 60, 2):
        load_prefill(fleet, 5.0 if second % 4 else 0.1)
        assert flips_within(roles, 1.5, start=second) == []


def test_the_last_worker_of_a_role_stays_and_so_does_the_minimum() -> None:
    fleet = fleet_of(1, 1)
    load_prefill(fleet, 50.0)
    assert flips_within(Roles(fleet, SLO, BOUNDS), 30.0) == []
    fleet = fleet_of(1, 2)
    load_prefill(fleet, 50.0)
    bounds = BOUNDS | {Role.DECODE: RoleBounds(min_workers=2, max_workers=3)}
    assert flips_within(Roles(fleet, SLO, bounds), 30.0) == []


def test_no_role_gives_a_worker_that_it_needs_itself() -> None:
    fleet = fleet_of(2, 2)
    load_prefill(fleet, 5.0)
    for name in ("d0", "d1"):
        fleet.book_decode(WorkerId(name), 12, 100)  # 0.13 s of 0.2 each: one alone would miss it
    assert flips_within(Roles(fleet, SLO, BOUNDS), 30.0) == []


def test_the_next_flip_waits_until_the_last_one_can_be_seen() -> None:
    fleet = fleet_of(1, 3)
    load_prefill(fleet, 50.0)
    roles = Roles(fleet, SLO, BOUNDS)
    flips = []
    for quarter in range(int(4 * (COOLDOWN_S + 2 * HOLD_S + 2))):
        load_prefill(fleet, 50.0)
        if roles.tick(quarter / 4) is not None:
            flips.append(quarter / 4)
    assert len(flips) == 2
    assert flips[1] - flips[0] >= COOLDOWN_S


@given(seed=st.integers(0, 10_000), num_prefill=st.integers(1, 3), num_decode=st.integers(1, 3))
def test_whatever_the_load_both_roles_stay_within_their_bounds(
    seed: int, num_prefill: int, num_decode: int
) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(num_prefill, num_decode)
    roles = Roles(fleet, SLO, BOUNDS)
    last_at = -COOLDOWN_S
    for step in range(200):
        load_prefill(fleet, rng.choice([0.0, 0.5, 3.0, 9.0]))
        if roles.tick(step / 2) is not None:
            assert step / 2 - last_at >= COOLDOWN_S
            last_at = step / 2
        assert 1 <= len(fleet.ready(Role.PREFILL)) <= 3
        assert 1 <= len(fleet.ready(Role.DECODE)) <= 3
    fleet.check_integrity()
