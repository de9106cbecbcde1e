"""A port to listen on that nobody else is likely to take before its server does."""

from __future__ import annotations

import random
import socket

_PORTS = range(20_000, 30_000)
"""Above those of Ray's own workers, below those of Serve's replicas."""
_NUM_TRIES = 100


def free_port() -> int:
    """On loopback, free a moment ago, and below what the kernel gives to outgoing
    connections: of those Ray makes hundreds while it starts, and one of them had the port often
    enough before its server did. Raises OSError where none is found."""
    for _ in range(_NUM_TRIES):
        port = random.randrange(_PORTS.start, _PORTS.stop)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"{_NUM_TRIES} ports from {_PORTS.start} to {_PORTS.stop - 1} are all taken")
