"""What a service promises its users."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets in seconds, and the share (0..1) of requests, and of a request's gaps between
    tokens, that must be within them."""

    ttft_s: float
    itl_s: float
    percentile: float
