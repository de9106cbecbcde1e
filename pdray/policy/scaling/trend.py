"""Where the load of a pool is going: Holt's linear smoothing of a series with uneven steps.

Holt, "Forecasting seasonals and trends by exponentially weighted moving averages" (1957);
the weights for uneven steps are those of Wright, "Forecasting data published at irregular time
intervals" (1986).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEVEL_S = 60.0
_TREND_S = 600.0
_SPREAD_S = 300.0
_NUM_DEVIATIONS = 2.0
"""Above the expected value: too few workers cost more than too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """``level`` at time ``at``, ``slope`` a second; ``deviation`` is the mean distance between what
    was expected from one look to the next and what came."""

    at: float
    level: float
    slope: float = 0.0
    deviation: float = 0.0


def follow(trend: Trend | None, value: float, now: float) -> Trend:
    """``now`` later than at the last call, or the value counts for nothing."""
    if trend is None:
        return Trend(at=now, level=value)
    elapsed_s = now - trend.at
    if elapsed_s <= 0.0:
        return trend
    expected = trend.level + trend.slope * elapsed_s
    level = expected + _weight(elapsed_s, _LEVEL_S) * (value - expected)
    new_slope = (level - trend.level) / elapsed_s
    slope = trend.slope + _weight(elapsed_s, _TREND_S) * (new_slope - trend.slope)
    distance = abs(value - expected)
    deviation = trend.deviation + _weight(elapsed_s, _SPREAD_S) * (distance - trend.deviation)
    return Trend(at=now, level=level, slope=slope, deviation=deviation)


def foretell(trend: Trend, horizon_s: float) -> float:
    """The load in ``horizon_s``, never below that of now for a slope that falls: what is not needed
    then may be needed until then."""
    expected = trend.level + max(trend.slope, 0.0) * horizon_s
    return max(expected + _NUM_DEVIATIONS * trend.deviation, 0.0)


def _weight(elapsed_s: float, time_constant_s: float) -> float:
    return 1.0 - math.exp(-elapsed_s / time_constant_s)
