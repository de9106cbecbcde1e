"""What a worker's tiers hold, and what goes down and up."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pdray.core.snapshot import TierSnapshot
from pdray.metrics.buckets import TRANSFER_BUCKETS_S
from pdray.metrics.total import Total


class TierMetrics:
    """Of one worker; nothing is shown before there is a tier."""

    def __init__(
        self, registry: CollectorRegistry, names: Sequence[str], values: tuple[str, ...]
    ) -> None:
        self._values = values
        labels = [*names, "tier"]

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._blocks = Gauge("pdray_kv_tier_blocks", "KV blocks.", labels, registry=registry)
        self._bytes = Gauge("pdray_kv_tier_bytes", "Their bytes.", labels, registry=registry)
        self._counters = (
            counter("pdray_kv_tier_demoted_blocks", "KV blocks that were copied down to it."),
            counter("pdray_kv_tier_hit_blocks", "KV blocks that prompts found in it."),
            counter(
                "pdray_kv_tier_failed_blocks",
                "KV blocks that it could not take, or that were not what it had taken.",
            ),
        )
        self._totals: dict[str, tuple[Total, ...]] = {}
        self._promotion_s = Histogram(
            "pdray_kv_promotion_seconds",
            "Time to bring a prompt's KV blocks from tiers to the device.",
            list(names),
            registry=registry,
            buckets=TRANSFER_BUCKETS_S,
        )
        self._promoted = Counter(
            "pdray_kv_promoted_blocks",
            "KV blocks that came from tiers to the device.",
            list(names),
            registry=registry,
        )

    def set(self, snapshots: Sequence[TierSnapshot]) -> None:
        for each in snapshots:
            labels = (*self._values, each.tier)
            self._blocks.labels(*labels).set(each.num_blocks)
            self._bytes.labels(*labels).set(each.num_bytes)
            if each.tier not in self._totals:
                self._totals[each.tier] = tuple(
                    Total(counter.labels(*labels)) for counter in self._counters
                )
            counts = (each.num_demoted, each.num_promoted, each.num_failed)
            for total, count in zip(self._totals[each.tier], counts, strict=True):
                total.set(count)

    def promoted(self, num_blocks: int, seconds: float) -> None:
        """A prompt's blocks have come, all that were missing."""
        self._promotion_s.labels(*self._values).observe(seconds)
        self._promoted.labels(*self._values).inc(num_blocks)
