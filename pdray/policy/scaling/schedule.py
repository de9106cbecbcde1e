"""Floors by the time of day."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from .base import ScheduledFloor


def scheduled_floor(schedule: Iterable[ScheduledFloor], unix_time: float) -> int:
    """The highest one that holds now; 0 where none does."""
    return max((each.min_replicas for each in schedule if _holds(each, unix_time)), default=0)


def _holds(floor: ScheduledFloor, unix_time: float) -> bool:
    local = datetime.fromtimestamp(unix_time, ZoneInfo(floor.timezone))
    second = local.hour * 3600 + local.minute * 60 + local.second
    if floor.start_s < floor.end_s:
        return local.weekday() in floor.weekdays and floor.start_s <= second < floor.end_s
    # What began yesterday belongs to yesterday's weekday.
    began_today = local.weekday() in floor.weekdays and second >= floor.start_s
    began_yesterday = (local.weekday() - 1) % 7 in floor.weekdays and second < floor.end_s
    return began_today or began_yesterday
