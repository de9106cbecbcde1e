"""The limits round every scaling policy: what it wishes for goes in, what may be done comes out.

Ray Serve's meaning of each word: factors take a part of the way from what there is now, delays
compare with what was last decided, only one worker can become none, and a pool that has none does
not wait for its first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pdray.policy.scaling.base import Rails

_EPSILON = 1e-6
"""Sums of floats that should be whole, and times that should be equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RailsMemory:
    """``wish``: in which direction the policy has wanted to go, without a break, since
    ``wish_since``; 0 for none. ``failed_at``: when a start last went wrong."""

    wish: int = 0
    wish_since: float = 0.0
    num_failures: int = 0
    failed_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """``workers`` are wanted, not fewer than ``floor``; ``current`` there are, those that start
    among them, and ``target`` is what was last decided."""

    workers: float
    floor: int
    current: int
    target: int
    num_failures: int


def apply_rails(
    wish: Wish, rails: Rails, memory: RailsMemory, now: float
) -> tuple[int, str, RailsMemory]:
    """The new target, what held it back in words (empty where nothing did), and what to remember.
    Never outside ``min_replicas`` and ``max_replicas``."""
    if wish.num_failures > memory.num_failures:
        memory = RailsMemory(
            wish=memory.wish,
            wish_since=memory.wish_since,
            num_failures=wish.num_failures,
            failed_at=now,
        )
    target = min(max(wish.target, rails.min_replicas), rails.max_replicas)
    if target != wish.target:
        return target, "min_replicas and max_replicas", _without_wish(memory)
    wanted = max(_scaled(wish.workers, wish.current, rails), wish.floor)
    wanted = min(max(wanted, rails.min_replicas), rails.max_replicas)
    if wanted == target:
        held = "max_replicas" if wish.workers > rails.max_replicas + _EPSILON else ""
        return target, held, _without_wish(memory)
    if target == 0:
        # Somebody waits for it.
        return _stepped(wanted, 0, rails), "", _without_wish(memory)
    direction = 1 if wanted > target else -1
    if direction < 0 and target > 1:
        wanted = max(wanted, 1)
        if wanted == target:
            return target, "", _without_wish(memory)
    if direction != memory.wish:
        memory = RailsMemory(
            wish=direction,
            wish_since=now,
            num_failures=memory.num_failures,
            failed_at=memory.failed_at,
        )
    if held := _held(direction, target, rails, memory, now):
        return target, held, memory
    return _stepped(wanted, target, rails), "", _without_wish(memory)


def _scaled(workers: float, current: int, rails: Rails) -> int:
    """From none, the factor has nothing to take a part of."""
    if current == 0:
        return math.ceil(workers - _EPSILON)
    difference = workers - current
    factor = rails.upscaling_factor if difference > 0 else rails.downscaling_factor
    scaled = math.ceil(current + factor * difference - _EPSILON)
    if scaled == current and math.ceil(workers - _EPSILON) < current:
        scaled -= 1
    return scaled


def _held(direction: int, target: int, rails: Rails, memory: RailsMemory, now: float) -> str:
    """What this change has to wait for, in words; empty for nothing."""
    lasted_s = now - memory.wish_since + _EPSILON
    if direction > 0:
        failed_at = memory.failed_at
        if failed_at is not None and now - failed_at + _EPSILON < rails.cooldown_s:
            return f"cooldown_s: a start went wrong {now - failed_at:.0f} s ago"
        if lasted_s < rails.upscale_delay_s:
            return f"upscale_delay_s: wanted for {lasted_s:.0f} of {rails.upscale_delay_s:g} s"
        return ""
    delay_s, name = rails.downscale_delay_s, "downscale_delay_s"
    if target == 1 and rails.downscale_to_zero_delay_s is not None:
        delay_s, name = rails.downscale_to_zero_delay_s, "downscale_to_zero_delay_s"
    return f"{name}: wanted for {lasted_s:.0f} of {delay_s:g} s" if lasted_s < delay_s else ""


def _stepped(wanted: int, target: int, rails: Rails) -> int:
    step = rails.max_step_replicas
    return wanted if step is None else min(max(wanted, target - step), target + step)


def _without_wish(memory: RailsMemory) -> RailsMemory:
    return RailsMemory(num_failures=memory.num_failures, failed_at=memory.failed_at)
