"""Phases as a frontend puts them together, from what two workers say."""

from __future__ import annotations

import random

import pytest

from pdray.core.request import PhaseAges, TokenChunk, WorkerId
from pdray.core.timeline import PhaseName, Timeline
from pdray.frontend.phase_record import PhaseRecord

P, D, D2 = WorkerId("p"), WorkerId("d"), WorkerId("d2")


def tokens(index: int, began_s: float | None = None, ready_s: float | None = None) -> TokenChunk:
    return TokenChunk(
        request_id="r",
        attempt=1,
        index=index,
        token_ids=(5,),
        finish_reason=None,
        decode_worker_id=None,
        ages=None if began_s is None else PhaseAges(began_s=began_s, ready_s=ready_s),
    )


def placed(at: float = 103.0) -> PhaseRecord:
    return PhaseRecord(arrived_at=100.0, placed_at=at)


def shown(timeline: Timeline) -> list[tuple[str, float, float, WorkerId | None]]:
    return [(p.name, p.start_s, p.duration_s, p.worker_id) for p in timeline.phases]


def test_two_workers_have_all_phases_in_order() -> None:
    record = placed()
    record.tokens_came(P, tokens(0, began_s=4.0), 110.0)
    record.tokens_came(D, tokens(1, began_s=0.5, ready_s=2.5), 116.0)
    record.tokens_came(D, tokens(2), 117.0)
    assert shown(record.timeline(120.0, has_decoded=True)) == [
        ("queued", 0.0, 3.0, None),
        ("prefill_wait", 3.0, 3.0, P),
        ("prefill", 6.0, 4.0, P),
        ("transfer", 10.0, 3.5, D),
        ("decode_wait", 13.5, 2.0, D),
        ("decode", 15.5, 4.5, D),
    ]


def test_one_worker_has_neither_transfer_nor_wait_for_decode() -> None:
    record = placed()
    record.tokens_came(P, tokens(0, began_s=4.0), 110.0)
    record.tokens_came(P, tokens(1), 111.0)
    names = [phase.name for phase in record.timeline(112.0, has_decoded=True).phases]
    assert names == ["queued", "prefill_wait", "prefill", "decode"]


def test_an_only_token_has_no_decode() -> None:
    record = placed()
    record.tokens_came(P, tokens(0, began_s=4.0), 110.0)
    timeline = record.timeline(110.0, has_decoded=False)
    assert timeline.phases[-1].name is PhaseName.PREFILL
    assert timeline.total_s == 10.0


def test_decode_that_overtakes_prefill_took_no_transfer() -> None:
    record = placed()
    record.tokens_came(D, tokens(1, began_s=0.5, ready_s=2.5), 109.0)
    record.tokens_came(P, tokens(0, began_s=4.0), 110.0)
    record.tokens_came(D, tokens(2), 111.0)
    assert shown(record.timeline(112.0, has_decoded=True))[2:] == [
        ("prefill", 6.0, 4.0, P),
        ("transfer", 10.0, 0.0, D),
        ("decode_wait", 10.0, 0.0, D),
        ("decode", 10.0, 2.0, D),
    ]


def test_one_that_moves_has_a_decode_for_each_worker() -> None:
    record = placed()
    record.tokens_came(P, tokens(0, began_s=4.0), 110.0)
    record.tokens_came(D, tokens(1, began_s=0.5, ready_s=1.0), 111.0)
    record.tokens_came(D2, tokens(3), 113.0)
    record.tokens_came(D, tokens(2), 113.5)  # it was late
    record.tokens_came(D2, tokens(4), 114.0)
    assert shown(record.timeline(115.0, has_decoded=True))[-2:] == [
        ("decode", 10.5, 2.5, D),
        ("decode", 13.0, 2.0, D2),
    ]


def test_a_prompt_that_came_computed_has_no_prefill() -> None:
    record = placed()
    record.tokens_came(D, tokens(1, began_s=0.5, ready_s=1.0), 105.0)
    assert shown(record.timeline(106.0, has_decoded=True)) == [
        ("queued", 0.0, 3.0, None),
        ("transfer", 3.0, 1.0, D),
        ("decode_wait", 4.0, 0.5, D),
        ("decode", 4.5, 1.5, D),
    ]


def test_one_that_is_placed_again_has_phases_of_both_attempts() -> None:
    record = placed()
    record.tokens_came(P, tokens(0, began_s=4.0), 110.0)
    record.tokens_came(D, tokens(1, began_s=0.5, ready_s=1.0), 111.0)
    record.lost(113.0, has_decoded=True)
    record.placed_at = 114.0
    record.tokens_came(D2, tokens(2, began_s=1.0), 117.0)
    record.tokens_came(D2, tokens(3), 118.0)
    timeline = record.timeline(119.0, has_decoded=True)
    assert shown(timeline)[-5:] == [
        ("decode", 10.5, 2.5, D),
        ("queued", 13.0, 1.0, None),
        ("prefill_wait", 14.0, 2.0, D2),
        ("prefill", 16.0, 1.0, D2),
        ("decode", 17.0, 2.0, D2),
    ]
    assert timeline.total_s == 19.0


def test_of_an_attempt_that_said_nothing_the_wait_is_known() -> None:
    record = placed()
    record.lost(105.0, has_decoded=False)
    record.placed_at = 106.0
    record.tokens_came(P, tokens(0, began_s=1.0), 108.0)
    assert shown(record.timeline(108.0, has_decoded=False)) == [
        ("queued", 0.0, 5.0, None),
        ("queued", 5.0, 1.0, None),
        ("prefill_wait", 6.0, 1.0, P),
        ("prefill", 7.0, 1.0, P),
    ]


@pytest.mark.parametrize("seed", range(50))
def test_phases_add_up_and_never_overlap_whatever_clocks_say(seed: int) -> None:
    rng = random.Random(seed)
    record = placed(100.0 + rng.random())
    begun, last = sorted(101.0 + rng.random() for _ in range(2))
    first = 101.0 + rng.random()
    record.tokens_came(P, tokens(0, began_s=3 * rng.random()), first)
    record.tokens_came(D, tokens(1, began_s=rng.random(), ready_s=2 * rng.random()), begun)
    ended_at = max(first, last)
    timeline = record.timeline(ended_at, has_decoded=True)
    assert [phase.name for phase in timeline.phases] == list(PhaseName)
    assert timeline.total_s == pytest.approx(ended_at - 100.0)
    at = 0.0
    for phase in timeline.phases:
        assert phase.start_s == pytest.approx(at)
        assert phase.duration_s >= 0
        at += phase.duration_s
