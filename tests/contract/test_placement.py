"""What every placement policy must do, whatever it likes best."""

from __future__ import annotations

import pytest

from pdray.control.fleet import Fleet
from pdray.core.mode import Mode
from pdray.core.placement import Together
from pdray.core.snapshot import Role, WorkerInfo, WorkerState
from pdray.policy.placement import PLACEMENT
from pdray.policy.placement.base import MAX_DECODE_CANDIDATES, PlacementPolicy
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot


def fleet_of(*infos: WorkerInfo) -> Fleet:
    fleet = Fleet()
    for info in infos:
        fleet.add(info, 0.0)
    return fleet


@pytest.fixture(params=PLACEMENT.names())
def policy(request: pytest.FixtureRequest) -> PlacementPolicy:
    return make_policy(request.param)


def test_an_empty_fleet_has_no_place(policy: PlacementPolicy) -> None:
    assert policy.place(Fleet(), make_ask()) is None


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_one_role_alone_has_no_place(policy: PlacementPolicy, role: Role) -> None:
    assert policy.place(fleet_of(make_info("w", role)), make_ask()) is None


def test_roles_are_kept(policy: PlacementPolicy) -> None:
    fleet = fleet_of(make_info("d", Role.DECODE), make_info("p", Role.PREFILL))
    choice = policy.place(fleet, make_ask())
    assert choice is not None
    assert (choice.prefill_id, choice.decode_ids) == ("p", ("d",))


def test_candidates_are_few_and_each_only_once(policy: PlacementPolicy) -> None:
    decodes = [make_info(f"d{i}", Role.DECODE) for i in range(MAX_DECODE_CANDIDATES + 3)]
    choice = policy.place(fleet_of(make_info("p", Role.PREFILL), *decodes), make_ask())
    assert choice is not None
    assert len(set(choice.decode_ids)) == len(choice.decode_ids) == MAX_DECODE_CANDIDATES


def test_candidates_share_the_layout_of_the_prefill_worker(policy: PlacementPolicy) -> None:
    fleet = fleet_of(
        make_info("p-lonely", Role.PREFILL, layout_digest="lonely"),
        make_info("p-a", Role.PREFILL, layout_digest="a"),
        make_info("d-b", Role.DECODE, layout_digest="b"),
        make_info("d-a", Role.DECODE, layout_digest="a"),
    )
    choice = policy.place(fleet, make_ask())
    assert choice is not None
    assert (choice.prefill_id, choice.decode_ids) == ("p-a", ("d-a",))


def test_workers_that_could_not_hold_the_request_are_left_out(policy: PlacementPolicy) -> None:
    fleet = fleet_of(
        make_info("p-small", Role.PREFILL, max_sequence_tokens=99),
        make_info("p", Role.PREFILL, max_sequence_tokens=100),
        make_info("d-small", Role.DECODE, max_sequence_tokens=109),
        make_info("d", Role.DECODE, max_sequence_tokens=110),
    )
    choice = policy.place(fleet, make_ask(num_prompt_tokens=100, max_tokens=10))
    assert choice is not None
    assert (choice.prefill_id, choice.decode_ids) == ("p", ("d",))


def test_a_draining_worker_gets_nothing(policy: PlacementPolicy) -> None:
    fleet = fleet_of(
        make_info("p", Role.PREFILL), make_info("d1", Role.DECODE), make_info("d2", Role.DECODE)
    )
    fleet.update(make_snapshot("d1", state=WorkerState.DRAINING), 0.0)
    choice = policy.place(fleet, make_ask())
    assert choice is not None
    assert choice.decode_ids == ("d2",)


def test_a_mixed_worker_is_paired_with_itself_only_where_it_is_alone(
    policy: PlacementPolicy,
) -> None:
    fleet = fleet_of(make_info("m1", Role.MIXED))
    alone = policy.place(fleet, make_ask())
    assert alone is not None
    assert (alone.prefill_id, alone.decode_ids) == ("m1", ("m1",))
    assert alone.together is Together.ALONE
    fleet.add(make_info("m2", Role.MIXED), 0.0)
    for _ in range(4):
        choice = policy.place(fleet, make_ask())
        assert choice is not None
        assert choice.prefill_id not in choice.decode_ids
        assert choice.together is None


def test_in_mode_soft_a_worker_does_both_phases_whoever_else_is_there(
    policy: PlacementPolicy,
) -> None:
    fleet = Fleet(mode=Mode.SOFT)
    for name in ("m1", "m2"):
        fleet.add(make_info(name, Role.MIXED), 0.0)
    choice = policy.place(fleet, make_ask())
    assert choice is not None
    assert choice.decode_ids == (choice.prefill_id,)
    assert choice.together is Together.ONE_POOL


def test_an_explanation_begins_with_what_would_be_chosen_and_changes_nothing(
    policy: PlacementPolicy,
) -> None:
    fleet = fleet_of(
        *(make_info(f"p{i}", Role.PREFILL) for i in range(5)),
        *(make_info(f"d{i}", Role.DECODE) for i in range(5)),
    )
    for i in range(6):
        fleet.update(make_snapshot(f"p{i % 5}", prefill_backlog_tokens=100 * i), 0.0)
        candidates = policy.explain(fleet, make_ask())
        assert policy.place(fleet, make_ask()) == candidates[0].choice


@pytest.mark.parametrize("phases", [Role.PREFILL, Role.DECODE])
def test_where_one_phase_is_another_applications_only_the_other_is_placed(
    policy: PlacementPolicy, phases: Role
) -> None:
    fleet = Fleet(phases)
    assert policy.place(fleet, make_ask()) is None
    for info in (make_info("p", Role.PREFILL), make_info("d", Role.DECODE)):
        fleet.add(info, 0.0)
    choice = policy.place(fleet, make_ask())
    assert choice is not None
    expected = ("p", ()) if phases is Role.PREFILL else (None, ("d",))
    assert (choice.prefill_id, choice.decode_ids) == expected
