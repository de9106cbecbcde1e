from __future__ import annotations

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.placement import (
    InFlight,
    KeptPrefix,
    Placement,
    PlacementAsk,
    PrefixSource,
    Queued,
    Refusal,
    ServingLimits,
)
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerState
from pdray.policy.placement.least_loaded import LeastLoaded
from tests.fleet_factories import make_ask, make_info, make_snapshot

P, D = WorkerId("p"), WorkerId("d")


def make_control(*, max_queued_requests: int = 8, with_workers: bool = True) -> ControlPlane:
    """At most two requests in flight: a batch of one in prefill, and one in decode."""
    config = ControlConfig(max_queued_requests=max_queued_requests, queue_timeout_s=60.0)
    control = ControlPlane(config, LeastLoaded())
    if with_workers:
        control.worker_joined(make_info(P, Role.PREFILL, max_batch_size=1), 0.0)
        control.worker_joined(make_info(D, Role.DECODE, max_batch_size=1), 0.0)
    return control


def asks(*request_ids: str) -> list[PlacementAsk]:
    return [make_ask(request_id) for request_id in request_ids]


def placed_ids(answers: list[Placement | Refusal]) -> list[str]:
    assert all(isinstance(answer, Placement) for answer in answers), answers
    return [answer.request_id for answer in answers]


def test_a_placement_carries_the_addresses_of_both_workers() -> None:
    (answer,) = make_control().place("f", asks("a"), 0.0)
    assert isinstance(answer, Placement)
    assert answer.prefill == make_info(P, Role.PREFILL).address
    assert answer.decode_candidates == (make_info(D, Role.DECODE).address,)


def test_past_the_bound_requests_queue_and_go_in_order_of_arrival() -> None:
    control = make_control()
    answers = control.place("f", asks("a", "b", "c", "d"), 0.0)
    assert [type(answer) for answer in answers] == [Placement, Placement, Queued, Queued]
    assert control.take_decisions() == []
    control.finished("f", ["b"], 1.0)
    assert placed_ids(control.take_decisions()) == ["c"]
    control.finished("f", ["a", "c"], 2.0)
    assert placed_ids(control.take_decisions()) == ["d"]
    control.finished("f", ["d"], 3.0)
    assert (control.num_in_flight, control.num_queued) == (0, 0)
    control.check_integrity()


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    control = make_control(max_queued_requests=1)
    for i in range(10):  # one request finishes each second
        control.place("f", asks(f"w{i}"), float(i))
        control.finished("f", [f"w{i}"], float(i))
    *_, answer = control.place("f", asks("a", "b", "c", "d"), 10.0)
    assert isinstance(answer, Refusal)
    assert answer.retry_after_s == 1.0
    assert "queued" in answer.reason


def test_a_queued_request_times_out_with_a_refusal() -> None:
    control = make_control()
    control.place("f", asks("a", "b", "c"), 0.0)
    for now in range(5, 60, 5):
        control.frontend_seen("f", float(now))
        control.tick(float(now))
    assert control.take_decisions() == []
    control.tick(60.0)
    (refusal,) = control.take_decisions()
    assert isinstance(refusal, Refusal)
    assert refusal.request_id == "c"
    assert refusal.retry_after_s is not None
    assert control.num_queued == 0


def test_a_request_that_no_worker_could_ever_hold_is_refused_for_good() -> None:
    control = make_control()
    ask = make_ask("long", num_prompt_tokens=1000, max_tokens=25)  # they hold 1024
    (answer,) = control.place("f", [ask], 0.0)
    assert isinstance(answer, Refusal)
    assert answer.retry_after_s is None
    assert "1024" in answer.reason


def test_while_workers_start_requests_wait_for_them() -> None:
    control = make_control(with_workers=False)
    assert control.limits() is None
    (answer,) = control.place("f", asks("a"), 0.0)
    assert isinstance(answer, Queued)
    control.worker_joined(make_info(P, Role.PREFILL), 1.0)
    assert control.take_decisions() == []
    control.worker_joined(make_info(D, Role.DECODE), 2.0)
    assert placed_ids(control.take_decisions()) == ["a"]


def test_a_request_that_waited_for_workers_too_small_for_it_is_refused_for_good() -> None:
    control = make_control(with_workers=False)
    control.place("f", [make_ask("long", num_prompt_tokens=2000)], 0.0)
    control.worker_joined(make_info(P, Role.PREFILL), 1.0)
    control.worker_joined(make_info(D, Role.DECODE), 1.0)
    (answer,) = control.take_decisions()
    assert isinstance(answer, Refusal)
    assert answer.retry_after_s is None


def test_a_lost_reply_may_be_asked_for_again() -> None:
    control = make_control()
    first = control.place("f", asks("a", "b", "c"), 0.0)
    assert control.place("f", asks("a", "b", "c"), 1.0) == first
    assert (control.num_in_flight, control.num_queued) == (2, 1)


def test_a_request_whose_prefill_worker_left_is_placed_again() -> None:
    control = make_control()
    control.place("f", asks("a"), 0.0)
    control.worker_left(P, 1.0)
    control.worker_joined(make_info("p2", Role.PREFILL), 2.0)
    (answer,) = control.place("f", asks("a"), 3.0)
    assert isinstance(answer, Placement)
    assert answer.prefill.worker_id == "p2"
    assert control.num_in_flight == 1
    control.check_integrity()


def test_a_request_id_of_another_frontend_is_refused_and_cannot_be_finished() -> None:
    control = make_control()
    control.place("f", asks("a"), 0.0)
    (answer,) = control.place("g", asks("a"), 0.0)
    assert isinstance(answer, Refusal)
    control.finished("g", ["a"], 1.0)
    assert control.num_in_flight == 1


def test_a_queued_request_given_up_is_answered_and_lets_the_next_go() -> None:
    control = make_control()
    control.place("f", asks("a", "b", "c", "d"), 0.0)
    control.finished("f", ["c"], 1.0)
    (answer,) = control.take_decisions()
    assert isinstance(answer, Refusal)
    assert answer.request_id == "c"
    control.finished("f", ["a"], 2.0)
    assert placed_ids(control.take_decisions()) == ["d"]


def test_a_frontend_that_is_gone_leaves_nothing_behind() -> None:
    control = make_control()
    control.place("f", asks("a", "b", "c"), 0.0)
    control.place("g", asks("x"), 0.0)
    control.frontend_gone("f", 1.0)
    refusal, placement = control.take_decisions()
    assert isinstance(refusal, Refusal)
    assert (refusal.request_id, placement.request_id) == ("c", "x")
    assert isinstance(placement, Placement)
    assert control.num_in_flight == 1
    assert control.frontend_ids == ["g"]


def test_a_frontend_that_says_nothing_is_forgotten() -> None:
    control = make_control()
    control.place("f", asks("a"), 0.0)
    control.tick(10.0)
    assert control.num_in_flight == 1
    control.tick(10.5)
    assert (control.num_in_flight, control.frontend_ids) == (0, [])


def test_a_remade_control_plane_asks_for_what_is_in_flight_and_books_it() -> None:
    control = make_control(with_workers=False)
    assert control.frontend_seen("f", 0.0) is False
    told = [InFlight(ask=ask, prefill_id=P, decode_id=D) for ask in asks("a", "b")]
    control.resume("f", told, 0.0)
    assert control.frontend_seen("f", 1.0) is True
    control.worker_joined(make_info(P, Role.PREFILL, max_batch_size=1), 2.0)
    control.worker_joined(make_info(D, Role.DECODE, max_batch_size=1), 2.0)
    (answer,) = control.place("f", asks("c"), 3.0)
    assert isinstance(answer, Queued)
    decode = control.fleet.get(D)
    assert decode is not None
    assert decode.num_decoding == 2
    control.finished("f", ["a"], 4.0)
    assert placed_ids(control.take_decisions()) == ["c"]
    control.check_integrity()


@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.FAILED])
def test_a_worker_that_is_not_ready_gets_no_work(state: WorkerState) -> None:
    control = make_control()
    control.snapshot(make_snapshot(D, state=state), 1.0)
    (answer,) = control.place("f", asks("a"), 1.0)
    assert isinstance(answer, Queued)
    control.snapshot(make_snapshot(D), 2.0)
    assert placed_ids(control.take_decisions()) == ["a"]


def test_a_worker_told_to_drain_gets_no_work_whatever_its_snapshot_says() -> None:
    control = make_control()
    control.worker_draining(D, 1.0)
    control.snapshot(make_snapshot(D), 1.0)
    (answer,) = control.place("f", asks("a"), 1.0)
    assert isinstance(answer, Queued)


def test_a_worker_without_news_is_passed_over_until_it_speaks() -> None:
    control = make_control()
    control.snapshot(make_snapshot(P), 20.0)
    control.tick(20.0)
    (answer,) = control.place("f", asks("a"), 20.0)
    assert isinstance(answer, Queued)
    control.snapshot(make_snapshot(D), 21.0)
    assert placed_ids(control.take_decisions()) == ["a"]


def test_limits_are_those_of_the_largest_pair_of_one_layout() -> None:
    control = make_control(with_workers=False)
    small, large = 512, 2048
    control.worker_joined(make_info(P, Role.PREFILL, layout_digest="a"), 0.0)
    control.worker_joined(
        make_info(D, Role.DECODE, layout_digest="a", max_sequence_tokens=small), 0.0
    )
    assert control.limits() == serving_limits(small)
    control.worker_joined(
        make_info("d2", Role.DECODE, layout_digest="b", max_sequence_tokens=large), 0.0
    )
    assert control.limits() == serving_limits(small)
    control.worker_joined(make_info("p2", Role.PREFILL, layout_digest="b"), 0.0)
    assert control.limits() == serving_limits(large)


def test_what_a_frontend_does_not_name_when_it_resumes_has_ended() -> None:
    control = make_control()
    control.place("f", asks("a", "b", "c"), 0.0)
    placed_b = InFlight(ask=make_ask("b"), prefill_id=P, decode_id=D)
    control.resume("f", [placed_b], 1.0)  # the report that "a" had finished was lost
    assert placed_ids(control.take_decisions()) == ["c"]
    assert control.num_in_flight == 2
    control.finished("f", ["b", "c"], 2.0)
    assert control.num_in_flight == 0
    control.check_integrity()


def test_a_frontend_that_was_thought_gone_may_ask_again() -> None:
    control = make_control(with_workers=False)
    control.place("f", asks("a"), 0.0)
    control.tick(60.0)
    (refusal,) = control.take_decisions()
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s is not None


def one_phase(phases: Role) -> ControlPlane:
    """Two workers of this phase, and one of the other, which is there by mistake."""
    config = ControlConfig(max_queued_requests=8, queue_timeout_s=60.0, phases=phases)
    control = ControlPlane(config, LeastLoaded())
    other = Role.MIXED & ~phases
    for worker_id, role in (("a", phases), ("b", phases), ("c", other)):
        info = make_info(worker_id, role, max_batch_size=2, max_sequence_tokens=1000)
        control.worker_joined(info, 0.0)
    return control


def test_an_application_that_only_prefills_places_no_decode() -> None:
    control = one_phase(Role.PREFILL)
    assert control.max_in_flight == 4
    answers = control.place("f", asks("1", "2", "3", "4", "5"), 0.0)
    assert [type(answer) for answer in answers] == [Placement] * 4 + [Queued]
    placed = [answer for answer in answers if isinstance(answer, Placement)]
    assert all(answer.decode_candidates == () for answer in placed)
    workers = [answer.prefill.worker_id for answer in placed if answer.prefill is not None]
    assert sorted(workers) == ["a", "a", "b", "b"]
    control.check_integrity()
    # A worker that has left has left its prompts: they go to the other one.
    control.worker_left(WorkerId("a"), 1.0)
    for answer in control.place("f", asks("1", "2"), 1.0):
        assert isinstance(answer, Placement | Queued)
        if isinstance(answer, Placement):
            assert answer.prefill is not None
            assert answer.prefill.worker_id == "b"
    control.check_integrity()


def test_an_application_that_only_decodes_places_no_prefill() -> None:
    control = one_phase(Role.DECODE)
    answers = control.place("f", asks("1", "2", "3", "4", "5"), 0.0)
    assert [type(answer) for answer in answers] == [Placement] * 4 + [Queued]
    placed = [answer for answer in answers if isinstance(answer, Placement)]
    assert all(answer.prefill is None for answer in placed)
    first = [answer.decode_candidates[0].worker_id for answer in placed]
    assert sorted(first) == ["a", "a", "b", "b"]
    assert all(len(answer.decode_candidates) == 2 for answer in placed)
    control.finished("f", ["1"], 1.0)
    assert placed_ids(control.take_decisions()) == ["5"]
    control.check_integrity()


@pytest.mark.parametrize("phases", [Role.PREFILL, Role.DECODE])
def test_the_limits_of_one_phase_are_those_of_its_workers(phases: Role) -> None:
    control = one_phase(phases)
    assert control.limits() == serving_limits(1000)
    assert control.can_place
    for worker_id in ("a", "b"):
        control.worker_left(WorkerId(worker_id), 0.0)
    assert control.limits() is None
    assert not control.can_place


def test_the_lowest_priority_goes_first_then_whoever_came_first() -> None:
    control = make_control()
    control.place("f", asks("1", "2"), 0.0)
    waiting = [make_ask(f"{p}.{i}", priority=p) for i, p in enumerate((0, 5, 0, -1, 5))]
    control.place("f", waiting, 0.0)
    placed: list[str] = []
    for number in range(5):
        control.finished("f", [["1", "2", *placed][number]], 1.0)
        placed += placed_ids(control.take_decisions())
        control.check_integrity()
    assert placed == ["-1.3", "0.0", "0.2", "5.1", "5.4"]


def test_an_urgent_request_does_not_wait_behind_one_that_nobody_has_room_for() -> None:
    control = make_control(with_workers=False)
    control.worker_joined(make_info(P, Role.PREFILL), 0.0)
    control.worker_joined(make_info(D, Role.DECODE, max_sequence_tokens=50), 0.0)
    control.worker_joined(make_info(WorkerId("large"), Role.DECODE), 0.0)
    control.worker_draining(WorkerId("large"), 0.0)
    small = {"num_prompt_tokens": 10, "max_tokens": 10}
    large, later, urgent = (
        make_ask("large"),
        make_ask("later", **small),
        make_ask("urgent", priority=-1, **small),
    )
    answers = control.place("f", [large, later, urgent], 0.0)
    assert [type(answer) for answer in answers] == [Queued, Queued, Placement]


def serving_limits(max_sequence_tokens: int) -> ServingLimits:
    return ServingLimits(
        max_model_len=4096, max_sequence_tokens=max_sequence_tokens, model_digest="model"
    )


def kept(worker_id: WorkerId, name: bytes = b"b") -> KeptPrefix:
    return KeptPrefix(name=name, num_tokens=32, worker_id=worker_id)


def place_next_turn(control: ControlPlane) -> Placement:
    ask = make_ask("next", prefix_names=(b"a", b"b", b"c"))
    (placement,) = control.place("f", [ask], 2.0)
    assert isinstance(placement, Placement)
    return placement


def test_the_next_turn_hears_where_the_last_one_ended() -> None:
    control = make_control()
    control.place("f", asks("first"), 0.0)
    control.finished("f", ["first"], 1.0, [kept(D)])
    expected = PrefixSource(address=make_info(D, Role.DECODE).address, num_tokens=32)
    assert place_next_turn(control).prefix_source == expected
    (other,) = control.place("f", [make_ask("other", prefix_names=(b"x",))], 2.0)
    assert isinstance(other, Placement)
    assert other.prefix_source is None


def test_what_is_cached_is_not_on_the_way_to_the_worker_that_computes_the_rest() -> None:
    control = make_control()
    control.finished("f", [], 1.0, [kept(D)])
    place_next_turn(control)  # 100 tokens, 32 of which can be pulled
    (prefill,) = control.fleet.ready(Role.PREFILL)
    assert prefill.prefill_backlog_tokens == 68


def test_a_turn_that_waited_in_the_queue_hears_it_too() -> None:
    control = make_control()
    control.place("f", asks("one", "two"), 0.0)
    (answer,) = control.place("f", [make_ask("next", prefix_names=(b"b",))], 0.5)
    assert isinstance(answer, Queued)
    control.finished("f", ["one"], 1.0, [kept(D)])
    (placement,) = control.take_decisions()
    assert isinstance(placement, Placement)
    assert placement.prefix_source is not None


def test_no_source_is_named_that_has_left_or_has_another_layout_or_is_the_worker_itself() -> None:
    for worker_id in (WorkerId("gone"), WorkerId("unlike"), P):
        control = make_control()
        control.worker_joined(make_info("unlike", Role.DECODE, layout_digest="another"), 0.0)
        control.finished("f", [], 1.0, [kept(worker_id)])
        assert place_next_turn(control).prefix_source is None


def test_a_source_may_drain_but_not_be_silent() -> None:
    control = make_control()
    other = WorkerId("other")
    control.worker_joined(make_info(other, Role.DECODE), 0.0)
    control.finished("f", [], 1.0, [kept(other)])
    control.worker_draining(other, 1.0)
    assert place_next_turn(control).prefix_source is not None
    control.finished("f", ["next"], 3.0)
    for worker_id in (P, D):
        control.snapshot(make_snapshot(worker_id), 20.0)
    control.tick(20.0)
    assert place_next_turn(control).prefix_source is None


def test_instead_of_one_that_has_left_the_next_longest_is_named() -> None:
    control = make_control()
    control.finished("f", [], 1.0, [kept(WorkerId("gone"), b"c"), kept(D, b"a")])
    source = place_next_turn(control).prefix_source
    assert source is not None
    assert source.address.worker_id == D


def test_it_is_known_whether_anybody_may_still_come_for_kv() -> None:
    control = make_control()
    assert not control.holds_kv
    control.snapshot(make_snapshot(P, num_held_blocks=3), 1.0)
    assert control.holds_kv
    control.snapshot(make_snapshot(P), 2.0)
    assert not control.holds_kv
