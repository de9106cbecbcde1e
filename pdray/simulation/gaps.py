"""Gaps between tokens, by the hundred million: counted in bins of a percent's width."""

from __future__ import annotations

import math
from collections import defaultdict

from pdray.metrics.latency import Distribution

_WIDTH = math.log(1.01)
_LEAST_S = 1e-7


class GapCounts:
    """Percentiles are within half a percent of those of all that was added."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, int] = defaultdict(int)
        self.count = 0
        self.total_s = 0.0

    def add(self, gap_s: float, count: int = 1) -> None:
        self._counts[_bin_of(gap_s)] += count
        self.count += count
        self.total_s += gap_s * count

    def distribution(self) -> Distribution | None:
        """None where there are no gaps."""
        if self.count == 0:
            return None
        bins = sorted((each, num) for each, num in self._counts.items() if num)
        p50, p90, p99, p999 = (self._percentile(bins, share) for share in (0.5, 0.9, 0.99, 0.999))
        return Distribution(
            count=self.count,
            mean=self.total_s / self.count,
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            max=_middle_of(bins[-1][0]),
        )

    def _percentile(self, bins: list[tuple[int, int]], share: float) -> float:
        num_below, wanted = 0, share * (self.count - 1)
        for each, num in bins:
            num_below += num
            if num_below > wanted:
                return _middle_of(each)
        return _middle_of(bins[-1][0])


def _bin_of(gap_s: float) -> int:
    return math.floor(math.log(max(gap_s, _LEAST_S)) / _WIDTH)


def _middle_of(bin_number: int) -> float:
    return math.exp((bin_number + 0.5) * _WIDTH)
