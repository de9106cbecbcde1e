from __future__ import annotations

import pytest

from pdray.control.fleet import Fleet
from pdray.core.link_cost import LinkCost
from pdray.core.mode import Mode
from pdray.core.placement import KeptPrefix, PlacementAsk, Together
from pdray.core.request import WorkerId
from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from pdray.policy.placement.base import PlacementChoice
from pdray.policy.placement.cost import Cost
from tests.fleet_factories import make_ask, make_info, make_snapshot

SLO = Slo(ttft_s=2.0, itl_s=0.1, percentile=0.99)


def times(factor: float = 1.0) -> StepTime:
    return StepTime(
        base_s=0.02 * factor,
        prefill_token_s=0.001 * factor,
        prefill_pair_s=0.0,
        decode_s=0.002 * factor,
        context_token_s=0.0,
    )


def pooled(num_prefill: int = 2, num_decode: int = 2) -> Fleet:
    fleet = Fleet()
    for role, num in ((Role.PREFILL, num_prefill), (Role.DECODE, num_decode)):
        for i in range(num):
            add(fleet, f"{str(role.name).lower()[0]}{i}", role)
    return fleet


def mixed(mode: Mode, num: int = 2) -> Fleet:
    fleet = Fleet(mode=mode)
    for i in range(num):
        add(fleet, f"m{i}", Role.MIXED)
    return fleet


def add(fleet: Fleet, name: str, role: Role, factor: float = 1.0) -> None:
    fleet.add(make_info(name, role, max_sequence_tokens=8192, max_batch_size=16), 0.0)
    fleet.update(make_snapshot(name, step_time=times(factor)), 0.0)


def busy(fleet: Fleet, name: str, num_decodes: int) -> None:
    fleet.book_decode(WorkerId(name), num_decodes, 100 * num_decodes)


def place(fleet: Fleet, ask: PlacementAsk | None = None) -> PlacementChoice:
    choice = Cost(SLO).place(fleet, ask or make_ask(num_prompt_tokens=1000, max_tokens=50))
    assert choice is not None
    return choice


def test_the_shorter_queue_in_seconds_wins_not_the_one_in_tokens() -> None:
    fleet = Fleet()
    add(fleet, "slow", Role.PREFILL, factor=4.0)
    add(fleet, "fast", Role.PREFILL)
    add(fleet, "d", Role.DECODE)
    fleet.update(make_snapshot("slow", step_time=times(4.0)), 0.0)
    fleet.update(make_snapshot("fast", step_time=times(), prefill_backlog_tokens=500), 0.0)
    assert place(fleet).prefill_id == "fast"


def test_a_cached_prefix_is_worth_a_longer_queue_up_to_its_length() -> None:
    fleet = Fleet()
    for name, role in (("p0", Role.PREFILL), ("p1", Role.PREFILL), ("d", Role.DECODE)):
        add(fleet, name, role)
    fleet.prefixes_kept([KeptPrefix(name=b"x", num_tokens=800, worker_id=WorkerId("p1"))])
    ask = make_ask(num_prompt_tokens=1000, max_tokens=50, prefix_names=(b"x",))
    for backlog_tokens, expected in ((700, "p1"), (900, "p0")):
        snapshot = make_snapshot("p1", step_time=times(), prefill_backlog_tokens=backlog_tokens)
        fleet.update(snapshot, 0.0)
        assert place(fleet, ask).prefill_id == expected


def test_decode_goes_where_it_disturbs_least_and_others_are_ranked_behind() -> None:
    fleet = pooled(1, 3)
    busy(fleet, "d0", 5)
    busy(fleet, "d2", 1)
    assert place(fleet).decode_ids == ("d1", "d2", "d0")


def test_a_slow_link_is_part_of_the_price() -> None:
    fleet = Fleet()
    for name, role, group in (
        ("p", Role.PREFILL, "a"),
        ("far", Role.DECODE, "b"),
        ("near", Role.DECODE, "a"),
    ):
        fleet.add(make_info(name, role, max_sequence_tokens=8192, node_group=group), 0.0)
    for name, seconds in (("far", 1.0), ("near", 0.001)):
        cost = LinkCost(source="a", latency_s=seconds, bytes_per_s=1e9, num_reads=9)
        fleet.update(make_snapshot(name, step_time=times(), reads=(cost,)), 0.0)
    assert place(fleet).decode_ids == ("near", "far")


def test_a_short_prompt_is_computed_on_an_idle_decode_worker_a_long_one_is_not() -> None:
    fleet = pooled()
    short = place(fleet, make_ask(num_prompt_tokens=40, max_tokens=50))
    assert short.together is Together.SHORT
    assert (short.prefill_id,) == short.decode_ids
    assert short.prefill_id in ("d0", "d1")
    long = place(fleet, make_ask(num_prompt_tokens=1000, max_tokens=50))
    assert long.together is None
    assert long.prefill_id in ("p0", "p1")


def test_a_short_prompt_that_would_hold_up_many_decodes_moves() -> None:
    fleet = pooled(1, 1)
    busy(fleet, "d0", 12)
    assert place(fleet, make_ask(num_prompt_tokens=40, max_tokens=50)).together is None


def test_before_anything_is_measured_every_prompt_goes_to_a_prefill_worker() -> None:
    fleet = Fleet()
    for name, role in (("p", Role.PREFILL), ("d", Role.DECODE)):
        fleet.add(make_info(name, role), 0.0)
    assert place(fleet, make_ask(num_prompt_tokens=4)).together is None


def test_in_mode_auto_an_idle_fleet_moves_nothing() -> None:
    choice = place(mixed(Mode.AUTO))
    assert choice.together is Together.CHEAPER
    assert (choice.prefill_id,) == choice.decode_ids


def test_in_mode_auto_a_long_prompt_stays_clear_of_those_that_decode() -> None:
    fleet = mixed(Mode.AUTO)
    busy(fleet, "m0", 4)
    choice = place(fleet, make_ask(num_prompt_tokens=1000, max_tokens=1))
    assert choice.prefill_id == "m1"


def test_in_mode_auto_a_decode_leaves_a_worker_that_is_full_of_prompts() -> None:
    fleet = mixed(Mode.AUTO)
    busy(fleet, "m1", 3)
    fleet.book_prefill(
        WorkerId("m0"), 8000, now=0.0
    )  # of late its prompts have taken 0.8 of its time
    fleet.update(make_snapshot("m0", step_time=times()), 0.2)
    fleet.tick(0.2, stale_after_s=10.0)
    choice = place(fleet, make_ask(num_prompt_tokens=200, max_tokens=250))
    assert (choice.prefill_id, choice.decode_ids) == ("m0", ("m1",))
    assert choice.together is None


def test_a_session_goes_where_its_last_turn_went_unless_that_is_busy() -> None:
    fleet = mixed(Mode.AUTO, 3)
    fleet.book_session("chat", None, WorkerId("m2"))
    ask = make_ask(num_prompt_tokens=1000, max_tokens=50, session_id="chat")
    assert place(fleet, ask).prefill_id == "m2"
    snapshot = make_snapshot("m2", step_time=times(), prefill_backlog_tokens=1500)
    fleet.update(snapshot, 0.0)
    assert place(fleet, ask).prefill_id == "m0"


def test_a_pair_that_keeps_the_slo_goes_before_a_cheaper_one_that_does_not() -> None:
    fleet = Fleet()
    add(fleet, "p", Role.PREFILL)
    add(fleet, "d-fast", Role.DECODE)
    add(fleet, "d-slow", Role.DECODE, factor=6.0)  # 120 ms a step, whoever is in it
    busy(fleet, "d-fast", 15)
    candidates = Cost(SLO).explain(fleet, make_ask(num_prompt_tokens=1000, max_tokens=2))
    assert candidates[0].itl_s is not None
    assert candidates[0].itl_s <= SLO.itl_s
    assert candidates[0].decode_ids[0] == "d-fast"


def test_an_explanation_begins_with_the_choice_and_changes_nothing() -> None:
    fleet = pooled(3, 3)
    policy, ask = Cost(SLO), make_ask(num_prompt_tokens=1000)
    candidates = policy.explain(fleet, ask)
    assert policy.place(fleet, ask) == candidates[0].choice
    costs = [candidate.cost for candidate in candidates]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(candidates[0].cost)


def test_a_mixed_worker_is_no_nearer_to_other_prefill_workers_than_its_node_group_is() -> None:
    fleet = Fleet()
    add(fleet, "m", Role.MIXED)
    add(fleet, "p", Role.PREFILL)
    add(fleet, "d", Role.DECODE)
    link = LinkCost(source="laptop", latency_s=0.5, bytes_per_s=1e9, num_reads=9)
    fleet.update(make_snapshot("d", step_time=times(), reads=(link,)), 0.0)
    busy(fleet, "m", 1)
    candidates = Cost(SLO).explain(fleet, make_ask(num_prompt_tokens=1000, max_tokens=50))
    (from_p,) = [each for each in candidates if each.prefill_id == "p"]
    assert from_p.decode_ids == ("d", "m")
