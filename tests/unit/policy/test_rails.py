"""The limits round scaling policies, against Ray Serve's own code and as properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.policy.rails import RailsMemory, Wish, apply_rails
from pdray.policy.scaling.base import Rails
from tests.scaling_factories import make_rails


def run(
    rails: Rails, wishes: Iterable[float], *, target: int, step_s: float = 1.0, failures: int = 0
) -> list[int]:
    """The target after each wish, all workers being there at once."""
    memory, targets = RailsMemory(), []
    for number, workers in enumerate(wishes):
        wish = Wish(workers=workers, floor=0, current=target, target=target, num_failures=failures)
        target, _, memory = apply_rails(wish, rails, memory, number * step_s)
        targets.append(target)
    return targets


def test_more_are_asked_for_once_the_wish_has_lasted() -> None:
    rails = make_rails(upscale_delay_s=3.0)
    assert run(rails, [4.0, 4.0, 4.0, 5.0], target=1) == [1, 1, 1, 5]


def test_a_wish_that_was_interrupted_begins_anew() -> None:
    rails = make_rails(upscale_delay_s=2.0)
    assert run(rails, [4.0, 4.0, 1.0, 4.0, 4.0, 4.0], target=1) == [1, 1, 1, 1, 1, 4]


def test_factors_take_a_part_of_the_way() -> None:
    assert run(make_rails(upscaling_factor=0.5), [6.0], target=2) == [4]
    assert run(make_rails(downscaling_factor=0.5), [2.0, 2.0, 2.0, 2.0], target=6) == [4, 3, 2, 2]


def test_one_change_is_bounded() -> None:
    rails = make_rails(max_step_replicas=2)
    assert run(rails, [9.0, 9.0, 1.0], target=1) == [3, 5, 3]


def test_only_one_can_become_none_and_that_has_a_delay_of_its_own() -> None:
    rails = make_rails(min_replicas=0, downscale_to_zero_delay_s=3.0)
    assert run(rails, [0.0] * 6, target=3) == [1, 1, 1, 1, 0, 0]


def test_a_pool_without_workers_does_not_wait_for_its_first() -> None:
    rails = make_rails(min_replicas=0, upscale_delay_s=60.0, upscaling_factor=0.1)
    assert run(rails, [0.2], target=0) == [1]


def test_after_a_failed_start_nothing_more_is_asked_for_until_it_has_cooled_down() -> None:
    rails = make_rails(cooldown_s=3.0)
    wish = Wish(workers=5.0, floor=0, current=1, target=1, num_failures=1)
    target, reason, memory = apply_rails(wish, rails, RailsMemory(), 0.0)
    assert target == 1
    assert "cooldown_s" in reason
    assert apply_rails(wish, rails, memory, 2.9)[0] == 1
    assert apply_rails(wish, rails, memory, 3.0)[0] == 5


WISHES = st.lists(st.floats(0.0, 40.0), min_size=1, max_size=40)


@st.composite
def any_rails(draw: st.DrawFn) -> Rails:
    low = draw(st.integers(0, 5))
    return make_rails(
        min_replicas=low,
        max_replicas=draw(st.integers(max(low, 1), 20)),
        upscale_delay_s=draw(st.sampled_from([0.0, 1.0, 5.0])),
        downscale_delay_s=draw(st.sampled_from([0.0, 2.0, 10.0])),
        upscaling_factor=draw(st.sampled_from([0.3, 1.0, 2.0])),
        downscaling_factor=draw(st.sampled_from([0.3, 1.0])),
        max_step_replicas=draw(st.sampled_from([None, 1, 3])),
    )


@given(rails=any_rails(), wishes=WISHES, target=st.integers(0, 30))
def test_targets_are_never_outside_min_and_max(
    rails: Rails, wishes: list[float], target: int
) -> None:
    for each in run(rails, wishes, target=target):
        assert rails.min_replicas <= each <= rails.max_replicas


@given(rails=any_rails(), wishes=WISHES, more=st.floats(0.0, 10.0), target=st.integers(1, 20))
def test_a_greater_wish_never_gets_less_at_the_same_moment(
    rails: Rails, wishes: list[float], more: float, target: int
) -> None:
    for workers in wishes:
        less, greater = (
            apply_rails(
                Wish(workers=each, floor=0, current=target, target=target, num_failures=0),
                rails,
                RailsMemory(),
                0.0,
            )[0]
            for each in (workers, workers + more)
        )
        assert greater >= less


@given(noise=st.lists(st.floats(-0.9, 0.9), min_size=20, max_size=60))
def test_noise_that_keeps_changing_direction_changes_nothing(noise: list[float]) -> None:
    rails = make_rails(upscale_delay_s=3.0, downscale_delay_s=3.0)
    wishes = [5.0 + (abs(each) if number % 2 else -abs(each)) for number, each in enumerate(noise)]
    assert set(run(rails, wishes, target=5)) == {5}


@given(rails=any_rails(), wishes=WISHES)
def test_a_step_is_never_longer_than_allowed_nor_sooner_than_its_delay(
    rails: Rails, wishes: list[float]
) -> None:
    start = min(max(5, rails.min_replicas), rails.max_replicas)
    targets = [start, *run(rails, wishes, target=start)]
    changed_at: dict[int, float] = {}
    for at, (before, after) in enumerate(itertools.pairwise(targets)):
        if rails.max_step_replicas is not None:
            assert abs(after - before) <= rails.max_step_replicas
        if before != after and before > 0:
            direction = 1 if after > before else -1
            delay_s = rails.upscale_delay_s if direction > 0 else rails.downscale_delay_s
            assert (
                at - changed_at.get(direction, -math.inf) >= delay_s or direction not in changed_at
            )
            changed_at[direction] = at


@given(
    # Eighths and such factors are exact, so that nothing but the rules can differ.
    wishes=st.lists(st.integers(0, 240).map(lambda each: each / 8), min_size=1, max_size=30),
    low=st.integers(0, 3),
    upscale_delay_s=st.sampled_from([0.0, 2.0, 5.0]),
    downscale_delay_s=st.sampled_from([0.0, 3.0]),
    factors=st.tuples(st.sampled_from([0.5, 1.0, 1.5]), st.sampled_from([0.25, 1.0])),
)
@settings(deadline=None)  # the first example imports Ray Serve
def test_the_shared_words_mean_what_they_mean_in_ray_serve(
    wishes: list[float],
    low: int,
    upscale_delay_s: float,
    downscale_delay_s: float,
    factors: tuple[float, float],
) -> None:
    """Serve's own functions, wish by wish; its bounds are applied where it applies them, around
    the policy (autoscaling_state.py)."""
    from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(
        min_replicas=low,
        max_replicas=12,
        upscale_delay_s=upscale_delay_s,
        downscale_delay_s=downscale_delay_s,
        upscaling_factor=factors[0],
        downscaling_factor=factors[1],
    )
    rails = make_rails(
        min_replicas=low,
        max_replicas=12,
        upscale_delay_s=upscale_delay_s,
        downscale_delay_s=downscale_delay_s,
        upscaling_factor=factors[0],
        downscaling_factor=factors[1],
    )
    target, state, expected = 3, {}, []
    for number, workers in enumerate(wishes):
        desired = _apply_scaling_factors(workers, target, config)
        desired = min(max(desired, low), 12)
        if target == 0 and desired > 0:
            target, state = desired, {}
        else:
            target, state = _apply_delay_logic(desired, target, config, state, _now=float(number))
        expected.append(target)
    assert run(rails, wishes, target=3) == expected
