"""What reads of peers have cost: for the metrics, and for whoever places requests."""

from __future__ import annotations

from collections import Counter

from pdray.core.link_cost import LinkCost, LinkFit
from pdray.core.snapshot import BytesRead
from pdray.link.connection import Connection
from pdray.metrics.prometheus import WorkerMetrics
from pdray.transfer.transfer_thread import PullReport


class ReadLog:
    """Of one worker's finished reads."""

    def __init__(self, metrics: WorkerMetrics, transport: str) -> None:
        self._metrics = metrics
        self._transport = transport
        self._fits: dict[str, LinkFit] = {}
        self._num_bytes: Counter[str] = Counter()

    def finished(self, report: PullReport, owner: Connection, *, is_hidden: bool) -> None:
        hello = owner.peer_hello
        self._num_bytes[hello.pool or ""] += report.num_bytes
        self._metrics.transfer_finished(
            report.transfer_s,
            queued_s=report.queued_s,
            transport=self._transport,
            source_pool=hello.pool or "",
            num_blocks=report.num_blocks,
            num_bytes=report.num_bytes,
            is_hidden=is_hidden,
        )
        if hello.node_group is not None:
            fit = self._fits.setdefault(hello.node_group, LinkFit(hello.node_group))
            fit.add(report.num_bytes, report.transfer_s)

    def bytes_read(self) -> tuple[BytesRead, ...]:
        read = self._num_bytes.items()
        return tuple(BytesRead(source_pool=pool, num_bytes=num) for pool, num in read)

    def costs(self) -> tuple[LinkCost, ...]:
        costs = [fit.cost() for fit in self._fits.values()]
        return tuple(cost for cost in costs if cost is not None)
