"""What one scrape shows: all workers and frontends, and the controller's own numbers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from ray.exceptions import RayError

from pdray.config_sections import SloConfig

from .messages import ControllerStatus
from .slot import WorkerSlot

logger = logging.getLogger(__name__)

_WORKER_TIMEOUT_S = 1.0


async def worker_texts(slots: list[WorkerSlot]) -> list[bytes]:
    """Every ready worker's exposition; one that does not answer in time is left out."""
    texts = await asyncio.gather(*(_worker_text(slot) for slot in slots))
    return [text for text in texts if text]


async def _worker_text(slot: WorkerSlot) -> bytes:
    if slot.handle is None:
        return b""
    try:
        return await asyncio.wait_for(slot.handle.metrics_text.remote(), _WORKER_TIMEOUT_S)
    except (RayError, TimeoutError) as error:
        logger.info("no metrics of %s %s: %s", slot.pool, slot.index, type(error).__name__)
        return b""


def controller_text(status: ControllerStatus) -> bytes:
    """The controller's own gauges, in Prometheus' text format."""
    workers = Counter((worker.pool, worker.state.value) for worker in status.workers)
    lines = [
        *_header("pdray_num_requests_queued", "Requests that the controller has not placed yet."),
        f"pdray_num_requests_queued {status.num_queued}",
        *_header("pdray_num_requests_placed", "Requests placed on workers and not finished."),
        f"pdray_num_requests_placed {status.num_in_flight}",
        *_header("pdray_max_requests_placed", "Past so many, requests queue."),
        f"pdray_max_requests_placed {status.max_in_flight}",
        *_header(
            "pdray_requests_placed_total",
            "Requests placed so far: on two workers, or why on one.",
            kind="counter",
        ),
        *(
            f'pdray_requests_placed_total{{how="{how}"}} {count}'
            for how, count in status.num_placed_by_how.items()
        ),
        *_header(
            "pdray_desired_workers",
            "Workers that a pool's policy wants, whether or not it may act.",
        ),
        *(
            f'pdray_desired_workers{{pool="{pool}"}} {count}'
            for pool, count in sorted(status.desired_workers.items())
        ),
        *_header("pdray_idle_pool", "1 for a pool that gets no requests while others do."),
        *(
            f'pdray_idle_pool{{pool="{pool}"}} {int(pool in status.idle_pools)}'
            for pool in sorted({worker.pool for worker in status.workers})
        ),
        *_header("pdray_num_workers", "Places in the pools, by their worker's state."),
        *(
            f'pdray_num_workers{{pool="{pool}",state="{state}"}} {count}'
            for (pool, state), count in sorted(workers.items())
        ),
        *_header("pdray_worker_startup_seconds", "What a worker's start took, part by part."),
        *(
            f'pdray_worker_startup_seconds{{pool="{worker.pool}",index="{worker.index}",'
            f'part="{part}"}} {seconds:.3f}'
            for worker in status.workers
            if worker.startup is not None
            for part, seconds in worker.startup.parts()
        ),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def slo_text(slo: SloConfig) -> bytes:
    """What requests should get, so that dashboards and alerts need no copy of the config."""
    lines = [
        *_header("pdray_slo_ttft_seconds", "Target for the time to the first token."),
        f"pdray_slo_ttft_seconds {slo.ttft_s:g}",
        *_header("pdray_slo_itl_seconds", "Target for the gap between two tokens."),
        f"pdray_slo_itl_seconds {slo.itl_s:g}",
        *_header("pdray_slo_percentile", "Share of requests that should meet them, 0 to 1."),
        f"pdray_slo_percentile {slo.percentile:g}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _header(name: str, text: str, kind: str = "gauge") -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
