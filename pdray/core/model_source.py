"""Where a worker that starts has its model from: its own disk, or a worker that runs."""

from __future__ import annotations

import enum

HIDDEN_S = 5.0
"""Of either, as the process loads its code meanwhile. A disk works by itself then; what a peer
sends takes the cores' time."""


class ModelSource(enum.StrEnum):
    """AUTO: whichever is faster."""

    AUTO = "auto"
    DISK = "disk"
    PEER = "peer"


def is_peer_faster(num_bytes: int, *, disk_bytes_per_s: float, peer_bytes_per_s: float) -> bool:
    """Of the weights; both rates as just measured."""
    disk_s, peer_s = num_bytes / disk_bytes_per_s, num_bytes / peer_bytes_per_s
    return disk_s > HIDDEN_S and peer_s < disk_s
