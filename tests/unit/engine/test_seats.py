"""The batch is full where the ITL target says so, but for nobody longer than a wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdray.core.step_time import StepTime, StepWork
from pdray.engine.seats import Seats
from pdray.engine.step_budget import StepBudget
from tests.fitted import fit_of

TIMES = StepTime(
    base_s=0.02, prefill_token_s=0.001, prefill_pair_s=0.0, decode_s=0.01, context_token_s=0.0
)
DECODES = StepWork(num_decodes=4, num_context_tokens=4000)
MAX_BATCH = 8
WAIT_S = 2.0


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def seats_of(clock: Clock) -> tuple[Seats, int]:
    """And how many keep to the target."""
    budget = StepBudget(
        fit_of(TIMES), max_tokens_per_step=512, max_batch_size=MAX_BATCH, itl_s=0.09
    )
    num_in_time = budget.num_seats(DECODES)
    assert 1 < num_in_time < MAX_BATCH
    return Seats(budget, max_wait_s=WAIT_S, clock=clock), num_in_time


def test_there_is_room_for_as_many_as_keep_to_the_target() -> None:
    seats, num_in_time = seats_of(Clock())
    assert seats.has_room(num_in_time - 1, DECODES)
    assert not seats.has_room(num_in_time, DECODES)


def test_who_has_waited_long_is_let_in_and_the_next_one_as_long_after_him() -> None:
    clock = Clock()
    seats, num_in_time = seats_of(clock)
    for num_taken in (num_in_time, num_in_time + 1):
        assert not seats.has_room(num_taken, DECODES)
        clock.now_s += WAIT_S * 0.9
        assert not seats.has_room(num_taken, DECODES)
        clock.now_s += WAIT_S * 0.2
        assert seats.has_room(num_taken, DECODES)
        seats.take()


def test_asking_takes_no_seat() -> None:
    clock = Clock()
    seats, num_in_time = seats_of(clock)
    seats.has_room(num_in_time, DECODES)
    clock.now_s += WAIT_S
    assert all(seats.has_room(num_in_time, DECODES) for _ in range(3))


def test_a_full_batch_has_room_for_nobody_however_long_he_waits() -> None:
    clock = Clock()
    seats, _ = seats_of(clock)
    assert not seats.has_room(MAX_BATCH, DECODES)
    clock.now_s += 100 * WAIT_S
    assert not seats.has_room(MAX_BATCH, DECODES)


@given(rests=st.lists(st.floats(0.0, 3.0), max_size=60))
def test_seats_past_the_target_are_given_no_faster_than_one_a_wait(rests: list[float]) -> None:
    clock = Clock()
    seats, num_in_time = seats_of(clock)
    num_taken, started_at = num_in_time, clock.now_s
    for rest_s in rests:
        clock.now_s += rest_s
        if seats.has_room(num_taken, DECODES):
            seats.take()
            num_taken += 1
    num_waits = (clock.now_s - started_at) / WAIT_S
    assert num_taken - num_in_time <= num_waits + 1e-6
