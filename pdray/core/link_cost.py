"""What reading a peer's KV costs, by how many bytes it is: a fixed part, and one for each byte."""

from __future__ import annotations

from dataclasses import dataclass

_FORGETTING = 0.98
"""What a read still counts after one more: the last 50 make most of a fit."""
_MAX_SURPRISE = 4.0
"""A read that took longer than so many times what was expected counts as that many times: one
stall hardly moves the fit, a link that has become slow does after a few reads."""
_NUM_TRUSTED = 8
"""From so many reads on there is something to be surprised against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """Reads from workers on ``source``, a node group, as one worker has measured ``num_reads``."""

    source: str
    latency_s: float
    bytes_per_s: float
    num_reads: int

    def read_s(self, num_bytes: int) -> float:
        return self.latency_s + num_bytes / self.bytes_per_s


class LinkFit:
    """Least squares of seconds = latency + bytes / rate, neither negative. A read's weight is one
    over its bytes, as large reads vary more in seconds than small ones."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._num_reads = 0
        self._inverse_bytes = 0.0
        self._count = 0.0
        self._bytes = 0.0
        self._seconds_per_byte = 0.0
        self._seconds = 0.0

    def add(self, num_bytes: int, read_s: float) -> None:
        """A read of nothing says nothing."""
        if num_bytes <= 0 or read_s <= 0.0:
            return
        known = self.cost()
        if known is not None and known.num_reads >= _NUM_TRUSTED:
            read_s = min(read_s, _MAX_SURPRISE * known.read_s(num_bytes))
        self._num_reads += 1
        self._inverse_bytes = self._inverse_bytes * _FORGETTING + 1.0 / num_bytes
        self._count = self._count * _FORGETTING + 1.0
        self._bytes = self._bytes * _FORGETTING + num_bytes
        self._seconds_per_byte = self._seconds_per_byte * _FORGETTING + read_s / num_bytes
        self._seconds = self._seconds * _FORGETTING + read_s

    def cost(self) -> LinkCost | None:
        """None before the first read."""
        if self._num_reads == 0:
            return None
        latency_s, byte_s = self._solve()
        return LinkCost(
            source=self._source,
            latency_s=latency_s,
            bytes_per_s=1.0 / byte_s,
            num_reads=self._num_reads,
        )

    def _solve(self) -> tuple[float, float]:
        without_latency = 0.0, self._seconds / self._bytes
        spread = self._inverse_bytes * self._bytes - self._count**2
        # Reads of one size cannot tell latency from rate.
        if spread <= 1e-6 * self._count**2:
            return without_latency
        latency_s = self._seconds_per_byte * self._bytes - self._count * self._seconds
        byte_s = self._inverse_bytes * self._seconds - self._count * self._seconds_per_byte
        if latency_s <= 0.0:
            return without_latency
        if byte_s <= 0.0:
            # However much was read, it took the same: all but nothing of it is latency.
            return self._seconds_per_byte / self._inverse_bytes, 1e-6 * without_latency[1]
        return latency_s / spread, byte_s / spread
