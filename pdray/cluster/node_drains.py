"""Nodes that are about to be taken away: scaled down, or bought back by a cloud that lent them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from ray._private.state import state
from ray.exceptions import RayError

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
_EXIT_S = 2.0
"""What the end of a process takes: it must be over before the node is."""


async def watch_node_drains(on_drains: Callable[[Mapping[str, float | None]], None]) -> None:
    """Runs for ever. ``on_drains`` is told, as long as there are some, which nodes drain, and how
    many seconds each has left; None where nobody has said."""
    while True:
        try:
            drains = await asyncio.to_thread(_draining_nodes)
            if drains:
                on_drains(drains)
        except RayError as error:
            logger.info("no word of nodes: %s", error)
        except Exception:  # workers are drained by it: it must go on
            logger.exception("looking for nodes that drain failed")
        await asyncio.sleep(_LOOK_S)


def _draining_nodes() -> dict[str, float | None]:
    # Not of Ray's public API, which has no word for this; Serve and Train ask in the same way.
    deadlines_ms: dict[str, int] = state.get_draining_nodes()
    # Wall time, as whoever drains a node is elsewhere.
    now = time.time()
    return {
        node_id: max(0.0, deadline_ms / 1000 - now - _EXIT_S) if deadline_ms else None
        for node_id, deadline_ms in deadlines_ms.items()
    }
