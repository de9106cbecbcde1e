"""Prometheus expositions read back: totals and percentiles, over all processes and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """Samples by name, added up over all labels but a histogram's ``le``."""

    totals: Mapping[str, float]
    buckets: Mapping[str, Mapping[float, float]]

    @classmethod
    def parse(cls, text: str) -> Scrape:
        totals: dict[str, float] = {}
        buckets: dict[str, dict[float, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{family.name}_bucket":
                    bounds = buckets.setdefault(family.name, {})
                    bound = float(sample.labels["le"])
                    bounds[bound] = bounds.get(bound, 0.0) + sample.value
                else:
                    totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return cls(totals=totals, buckets=buckets)

    def total_since(self, before: Scrape, name: str) -> float:
        """What was added between two scrapes; 0 for a sample that neither has."""
        return self.totals.get(name, 0.0) - before.totals.get(name, 0.0)

    def buckets_since(self, before: Scrape, name: str) -> list[tuple[float, float]]:
        """A histogram of what came between two scrapes: (upper bound, cumulative count)."""
        earlier = before.buckets.get(name, {})
        return [
            (bound, count - earlier.get(bound, 0.0))
            for bound, count in sorted(self.buckets.get(name, {}).items())
        ]


def bucket_quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Linear within the bucket that holds it, as Prometheus' ``histogram_quantile``: exact to a
    bucket's width only. Past the last finite bound it is that bound; None without values."""
    total = buckets[-1][1] if buckets else 0.0
    if total == 0:
        return None
    rank = share * total
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    raise AssertionError("the last bucket holds every value")
