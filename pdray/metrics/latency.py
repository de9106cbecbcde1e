"""From the times of requests' tokens to latencies, throughput and goodput.

The words are those of the glossary: TTFT is arrival to first token, ITL the gap between
consecutive tokens of one request (a distribution over all tokens), TPOT one number per
request, E2E arrival to last token. Tokens that came together have gaps of zero between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pdray.core.slo import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as its client saw it: all times in seconds on one clock.

    ``token_times`` has an entry per output token and never goes back. A request that failed
    or was refused is not ``is_complete``: it counts against attainment, not in latencies.
    """

    arrival_at: float
    token_times: tuple[float, ...]
    num_prompt_tokens: int
    is_complete: bool

    @property
    def ttft_s(self) -> float | None:
        return self.token_times[0] - self.arrival_at if self.token_times else None

    @property
    def tpot_s(self) -> float | None:
        if len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)

    @property
    def itls_s(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in pairwise(self.token_times))

    @property
    def e2e_s(self) -> float | None:
        return self.token_times[-1] - self.arrival_at if self.token_times else None

    def meets(self, slo: Slo) -> bool:
        """Complete, its first token in time, and at least ``slo.percentile`` of its own gaps."""
        if not self.is_complete or self.ttft_s is None or self.ttft_s > slo.ttft_s:
            return False
        itls_s = self.itls_s
        num_good = sum(itl_s <= slo.itl_s for itl_s in itls_s)
        return not itls_s or num_good / len(itls_s) >= slo.percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Percentiles are linear between the two nearest values, as numpy's default."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution | None:
        """None where there are no values."""
        array = np.fromiter(values, dtype=np.float64)
        if array.size == 0:
            return None
        p50, p90, p99, p999 = np.percentile(array, (50, 90, 99, 99.9))
        return cls(
            count=int(array.size),
            mean=float(array.mean()),
            p50=float(p50),
            p90=float(p90),
            p99=float(p99),
            p999=float(p999),
            max=float(array.max()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """A run in numbers. ``duration_s`` is from the first arrival to the last token or arrival;
    attainment and goodput are None where no SLO was given."""

    num_requests: int
    num_complete: int
    duration_s: float
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    e2e_s: Distribution | None
    completed_rps: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    slo_attainment: float | None
    goodput_rps: float | None


def summarize(records: Sequence[RequestRecord], slo: Slo | None) -> LatencySummary:
    """Latencies and prompt tokens of complete requests; output tokens of all. Raises
    ValueError for an empty run."""
    if not records:
        raise ValueError("a run without requests has no latencies")
    complete = [record for record in records if record.is_complete]
    last_at = max((record.token_times or (record.arrival_at,))[-1] for record in records)
    last_at = max(last_at, max(record.arrival_at for record in records))
    duration_s = last_at - min(record.arrival_at for record in records)

    def per_s(count: int) -> float:
        return count / duration_s if duration_s > 0 else 0.0

    num_good = None if slo is None else sum(record.meets(slo) for record in records)
    return LatencySummary(
        num_requests=len(records),
        num_complete=len(complete),
        duration_s=duration_s,
        ttft_s=Distribution.of(r.ttft_s for r in complete if r.ttft_s is not None),
        tpot_s=Distribution.of(r.tpot_s for r in complete if r.tpot_s is not None),
        itl_s=Distribution.of(itl_s for r in complete for itl_s in r.itls_s),
        e2e_s=Distribution.of(r.e2e_s for r in complete if r.e2e_s is not None),
        completed_rps=per_s(len(complete)),
        prompt_tokens_per_s=per_s(sum(r.num_prompt_tokens for r in complete)),
        output_tokens_per_s=per_s(sum(len(r.token_times) for r in records)),
        slo_attainment=None if num_good is None else num_good / len(records),
        goodput_rps=None if num_good is None else per_s(num_good),
    )
