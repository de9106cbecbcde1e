"""Worker processes under the real control plane and a real frontend, and a load of requests that
end in every way that there is."""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.clock import WallClock
from pdray.core.errors import OverloadedError, PdrayError
from pdray.core.request import Request, WorkerId
from pdray.core.snapshot import Role, WorkerSnapshot
from pdray.engine.config import EngineConfig
from pdray.frontend.frontend import Frontend
from pdray.local import LocalController
from pdray.policy.placement.least_loaded import LeastLoaded
from pdray.worker.config import WorkerConfig
from tests.equivalence.reference import Reference, ReferenceTokens
from tests.local_cluster import random_prompts, request_of
from tests.worker_process import WorkerProcess

LEASE_S = 4.0
MAX_TOKENS = 24
REQUEST_TIMEOUT_S = 120.0
"""Of all attempts together: each of them may have to queue."""
ENGINE = EngineConfig(
    block_size=16,
    kv_cache_bytes=400 * 1024,
    max_tokens_per_step=64,
    max_batch_size=8,
    max_model_len=256,
    num_threads=1,
    tensor_parallel=1,
    attention_backend="auto",
    device="cpu",
    dtype="float32",
)


def worker_config(model_path: Path, name: str, role: str, host: str = "127.0.0.1") -> WorkerConfig:
    return WorkerConfig(
        worker_id=WorkerId(name),
        pool=role,
        node_group="here",
        role=Role.parse(role),
        host=host,
        model_path=model_path,
        engine=ENGINE,
        transport="nixl",
        lease_s=LEASE_S,
    )


class ProcessCluster:
    """Starts the workers; sees for itself when one has died."""

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self.workers = {worker.config.worker_id: worker for worker in workers}
        self.latest: dict[WorkerId, WorkerSnapshot] = {}
        self.unheard: set[WorkerId] = set()
        """Workers of which the control plane gets no news."""
        self.plane = ControlPlane(
            ControlConfig(max_queued_requests=64, queue_timeout_s=30, stale_after_s=1.0),
            LeastLoaded(),
        )
        self.controller = LocalController("test", self.plane)
        self.frontend = Frontend("test", self.controller, max_unread_tokens=4096)
        self._clock = WallClock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ProcessCluster:
        for worker in self.workers.values():
            await self.add(worker)
        self._task = asyncio.create_task(self._observe())
        return self

    async def add(self, worker: WorkerProcess) -> None:
        info = await asyncio.to_thread(worker.wait_until_ready)
        self.workers[info.worker_id] = worker
        self.plane.worker_joined(info, self._clock.now())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await self.frontend.stop()

    async def _observe(self) -> None:
        while True:
            for worker_id, worker in list(self.workers.items()):
                for snapshot in worker.take_snapshots():
                    assert snapshot.num_unaccounted_blocks == 0, snapshot
                    # UNACC
                    self.latest[worker_id] = snapshot
                    if worker_id not in self.unheard:
                        self.plane.snapshot(snapshot, self._clock.now())
                if not worker.is_alive:
                    del self.workers[worker_id]
                    self.plane.worker_left(worker_id, self._clock.now())
            self.controller.tick()
            await asyncio.sleep(0.02)

    async def until_idle(self, timeout_s: float) -> None:
        """Every block of every living worker is free or cached, and nothing waits."""
        give_up_at = time.monotonic() + timeout_s
        while not all(is_idle(self.latest.get(worker_id)) for worker_id in self.workers):
            assert self._task is not None
            if self._task.done():
                self._task.result()
            assert time.monotonic() < give_up_at, list(self.latest.values())
            await asyncio.sleep(0.1)


def is_idle(snapshot: WorkerSnapshot | None) -> bool:
    if snapshot is None:
        return False
    num_unused = snapshot.num_free_blocks + snapshot.num_cached_blocks
    return num_unused == snapshot.num_blocks and snapshot.num_waiting == snapshot.num_running == 0


@dataclass(slots=True)
class Load:
    """Requests with a known right answer, a third of which are given up at a random moment."""

    reference: Reference
    num_concurrent: int = 12
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    num_made: int = 0
    answers: dict[int, ReferenceTokens] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    last_seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = [self.rng.randrange(1, 150) for _ in range(24)]
        self.prompts = random_prompts(lengths, seed=9)
        self.answers = dict(enumerate(self.reference.generate_all(self.prompts, MAX_TOKENS)))

    async def run(self, cluster: ProcessCluster, num_requests: int) -> None:
        gate = asyncio.Semaphore(self.num_concurrent)

        async def one() -> None:
            async with gate:
                await self._request(cluster)

        async with asyncio.TaskGroup() as group:
            for _ in range(num_requests):
                group.create_task(one())

    async def until_made(self, num_requests: int) -> None:
        while self.num_made < num_requests:
            await asyncio.sleep(0.005)

    async def _request(self, cluster: ProcessCluster) -> None:
        self.num_made += 1
        index = self.rng.randrange(len(self.prompts))
        request = request_of(self.prompts[index], MAX_TOKENS, request_id=f"r{self.num_made}")
        give_up_after_s = self.rng.uniform(0, 0.2) if self.rng.random() < 1 / 3 else None
        try:
            async with asyncio.timeout(give_up_after_s or REQUEST_TIMEOUT_S):
                tokens = await self._tokens(cluster, request)
        except TimeoutError:
            assert give_up_after_s is not None, (
                f"{request.request_id} has waited for ever: {self.last_seen[request.request_id]}"
            )
            self.counts["given up"] += 1
        except OverloadedError as error:
            self.counts["refused"] += 1
            await asyncio.sleep(min(0.5, error.retry_after_s))
        except PdrayError as error:
            self.counts[type(error).__name__] += 1
        else:
            self.counts["complete"] += 1
            check_tokens(tokens, self.answers[index])

    async def _tokens(self, cluster: ProcessCluster, request: Request) -> list[int]:
        tokens: list[int] = []
        stream = cluster.frontend.generate(request)
        try:
            async for delta in stream:
                tokens += delta.token_ids
        except asyncio.CancelledError:
            self.last_seen[request.request_id] = str(cluster.frontend._live.get(request.request_id))
            raise
        finally:
            await stream.aclose()
        return tokens


def check_tokens(tokens: list[int], answer: ReferenceTokens) -> None:
    """A block that was overwritten, or read too early, gives other tokens."""
    for position, (token_id, expected) in enumerate(zip(tokens, answer.token_ids, strict=True)):
        if token_id != expected:
            assert answer.gaps[position] < 1e-3, (position, tokens, answer.token_ids)
            return
