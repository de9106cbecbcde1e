"""Where a worker that starts has its model from: its own disk, or a worker that runs."""

from __future__ import annotations

import enum

HIDDEN_S = 5.0
"""Of reading the disk, as the process loads its code meanwhile. What a peer sends does not come by
itself: it is there before that begins."""


class ModelSource(enum.StrEnum):
    """AUTO: whichever is faster."""

    AUTO = "auto"
    DISK = "disk"
    PEER = "peer"


def is_peer_faster(num_bytes: int, *, disk_bytes_per_s: float, peer_bytes_per_s: float) -> bool:
    """Of the weights; both rates as just measured."""
    return num_bytes / peer_bytes_per_s < num_bytes / disk_bytes_per_s - HIDDEN_S
