"""Worker processes that are killed, or told to end, under requests in every phase: their clients
get the tokens of an undisturbed run."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pdray.core.grammar import Grammar, GrammarKind
from pdray.core.request import Request, WorkerId
from pdray.frontend.live_request import LiveRequest
from tests.chaos.cluster import ENGINE, ProcessCluster, check_tokens, worker_config
from tests.equivalence.reference import Reference
from tests.local_cluster import num_migrated, num_placed_again, random_prompts, request_of
from tests.worker_peer import until
from tests.worker_process import STEP_PAUSE, WorkerProcess

pytestmark = pytest.mark.slow

MakeWorker = Callable[..., WorkerProcess]
NUM_TOKENS = 40
LENGTHS = [170, 150, 100, 140, 60]
SAMPLING: list[dict[str, object]] = [
    {},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 0.7, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    {"temperature": 1.0, "min_tokens": 30, "stop_token_ids": tuple(range(3, 200))},
    {"temperature": 0.8, "grammar": Grammar(kind=GrammarKind.REGEX, text="[a-z]{60}")},
]


@pytest.fixture
def make_worker(tiny_model_path: Path, tmp_path: Path) -> Iterator[MakeWorker]:
    """Workers whose every step takes long enough to be killed in."""
    with ExitStack() as stack:

        def make(name: str, role: str, pause_s: float = 0.02) -> WorkerProcess:
            engine = replace(ENGINE, kv_cache_bytes=4 * 2**20, max_tokens_per_step=32)
            config = replace(worker_config(tiny_model_path, name, role), engine=engine)
            worker = WorkerProcess(config, tmp_path / f"{name}.log", env={STEP_PAUSE: str(pause_s)})
            stack.callback(worker.close)
            return worker

        yield make


def requests_of(prefix: str) -> list[Request]:
    requests = []
    for i, (prompt, more) in enumerate(zip(random_prompts(LENGTHS), SAMPLING, strict=True)):
        request = request_of(prompt, NUM_TOKENS, request_id=f"{prefix} {i}", cache_salt=prefix)
        requests.append(replace(request, sampling=replace(request.sampling, **more)))
    return requests


class Scene:
    """One round of requests, the first of which is watched."""

    def __init__(self, cluster: ProcessCluster, name: str) -> None:
        self.cluster = cluster
        self.requests = requests_of(name)
        self.killed: list[WorkerId] = []

    def workers(self, role: str) -> list[WorkerProcess]:
        return [each for each in self.cluster.workers.values() if each.config.pool == role]

    def signal(self, role: str, number: signal.Signals) -> None:
        for worker in self.workers(role):
            worker.send_signal(number)

    @property
    def first(self) -> LiveRequest:
        return self.cluster.frontend._live[self.requests[0].request_id]

    async def tokens(self) -> list[list[int]]:
        return list(await asyncio.gather(*map(self._tokens_of, self.requests)))

    async def _tokens_of(self, request: Request) -> list[int]:
        deltas = self.cluster.frontend.generate(request)
        return [token async for delta in deltas for token in delta.token_ids]

    async def until_sent(self, num_tokens: int) -> None:
        await self.until_submitted()
        first = self.first
        await until(lambda: first.num_output_tokens >= num_tokens and bool(first.decode_id))

    async def until_submitted(self) -> None:
        lives = self.cluster.frontend._live
        await until(lambda: len(lives) == len(self.requests))
        await until(lambda: all(live.prefill_id for live in lives.values()))

    def kill(self, worker_id: str | None) -> None:
        worker = self.cluster.workers[WorkerId(str(worker_id))]
        self.killed.append(worker.config.worker_id)
        worker.kill()


Killing = Callable[[Scene], Awaitable[None]]
PREFILL_S = 0.15
"""By then prompts run, and not all have."""


async def while_queued_at_prefill(scene: Scene) -> None:
    scene.signal("prefill", signal.SIGSTOP)
    await scene.until_submitted()
    scene.kill(scene.first.prefill_id)
    scene.signal("prefill", signal.SIGCONT)


async def while_prefilling(scene: Scene) -> None:
    await scene.until_submitted()
    await asyncio.sleep(PREFILL_S)
    scene.kill(scene.first.prefill_id)


async def while_pulling(scene: Scene) -> None:
    await scene.until_submitted()
    await asyncio.sleep(PREFILL_S)
    scene.kill(sorted(scene.first.decode_ids)[0])


async def prefill_with_the_first_token(scene: Scene) -> None:
    await scene.until_sent(1)
    scene.kill(scene.first.prefill_id)


async def decode_with_the_first_token(scene: Scene) -> None:
    await scene.until_sent(1)
    scene.kill(scene.first.decode_id)


async def decode_in_mid_stream(scene: Scene) -> None:
    await scene.until_sent(10)
    scene.kill(scene.first.decode_id)


async def both_in_mid_stream(scene: Scene) -> None:
    await scene.until_sent(10)
    prefill_id, decode_id = scene.first.prefill_id, scene.first.decode_id
    scene.kill(prefill_id)
    scene.kill(decode_id)


KILLINGS: list[Killing] = [
    while_queued_at_prefill,
    while_prefilling,
    while_pulling,
    prefill_with_the_first_token,
    decode_with_the_first_token,
    decode_in_mid_stream,
    both_in_mid_stream,
]


@pytest.mark.timeout(900)
async def test_a_worker_killed_in_any_phase_costs_no_token_and_changes_none(
    make_worker: MakeWorker, tiny_model_path: Path
) -> None:
    workers = [make_worker(f"{role}-{i}", role) for i in range(2) for role in ("prefill", "decode")]
    reference = Reference(tiny_model_path).generate(random_prompts(LENGTHS)[0], NUM_TOKENS)
    num_replaced = 0
    async with ProcessCluster(workers) as cluster:
        calm = await Scene(cluster, "calm").tokens()
        check_tokens(calm[0], reference)
        for killing in KILLINGS:
            scene = Scene(cluster, killing.__name__)
            answering = asyncio.create_task(scene.tokens())
            await killing(scene)
            tokens = await answering
            print(f"{killing.__name__}: {num_placed_again(cluster.frontend):g} placed again so far")
            check_tokens(tokens[0], reference)
            assert tokens == calm, killing.__name__
            for worker_id in scene.killed:
                role = str(worker_id).split("-")[0]
                num_replaced += 1
                await cluster.add(make_worker(f"{role}-{1 + num_replaced}", role))
            await cluster.until_idle(60)
        assert cluster.frontend.num_in_flight == 0
        assert num_placed_again(cluster.frontend) > len(KILLINGS)


async def test_workers_that_are_told_to_end_are_left_by_what_runs_there(
    make_worker: MakeWorker,
) -> None:
    slow = functools.partial(make_worker, pause_s=0.1)
    workers = [slow(f"{role}-{i}", role) for i in range(2) for role in ("prefill", "decode")]
    async with ProcessCluster(workers) as cluster:
        calm = await Scene(cluster, "calm").tokens()

        scene = Scene(cluster, "decode")
        answering = asyncio.create_task(scene.tokens())
        await scene.until_sent(2)
        leaver = cluster.workers[WorkerId(str(scene.first.decode_id))]
        leaver.send_signal(signal.SIGTERM)
        await until(lambda: leaver.exit_code == 0)
        assert await answering == calm
        assert num_placed_again(cluster.frontend) == 0
        assert num_migrated(cluster.frontend) > 0, "it waited for its decodes to end"

        scene = Scene(cluster, "prefill")
        answering = asyncio.create_task(scene.tokens())
        await scene.until_submitted()
        leaver = cluster.workers[WorkerId(str(scene.first.prefill_id))]
        leaver.send_signal(signal.SIGTERM)
        await until(lambda: leaver.exit_code == 0)
        assert await answering == calm
        await cluster.until_idle(60)
        assert cluster.frontend.num_in_flight == 0
