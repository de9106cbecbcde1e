"""A fleet as its control plane sees it: workers, what they report, and who asks for a place."""

from __future__ import annotations

import random
from collections.abc import Iterator

from pdray.core.link_cost import LinkCost
from pdray.core.placement import PlacementAsk, WorkerAddress
from pdray.core.prefix_report import PREFIX_NAME_BYTES, KVTier, NameChanges, PrefixReport
from pdray.core.request import WorkerId
from pdray.core.snapshot import KVSpan, Role, WorkerInfo, WorkerSnapshot, WorkerState
from pdray.core.step_time import StepTime

BLOCK_SIZE = 16
PREFIX_BLOCKS = 125
"""Of one conversation: 2,000 tokens."""
NEW_BLOCKS = 25
"""Of its next turn: 400 tokens that nobody has."""
NUM_BLOCKS = 4096
BATCH_SIZE = 64
_MAX_TOKENS = 200
_STEP_TIME = StepTime(
    base_s=0.004,
    prefill_token_s=4e-5,
    prefill_pair_s=2e-9,
    decode_s=1e-4,
    context_token_s=1e-8,
)


def worker_ids(num_workers: int) -> list[WorkerId]:
    """Every second one prefills."""
    return [WorkerId(f"{'dp'[i % 2]}{i}") for i in range(num_workers)]


def info_of(worker_id: WorkerId) -> WorkerInfo:
    role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
    return WorkerInfo(
        worker_id=worker_id,
        pool=str(role.name).lower(),
        node_group=f"{role.name} nodes",
        role=role,
        address=WorkerAddress(worker_id=worker_id, host="10.0.0.1", port=4000, link_key=b"k" * 32),
        dtype="bfloat16",
        layout_digest="layout",
        layout_text="layout",
        model_digest="model",
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        max_batch_size=BATCH_SIZE,
        max_tokens_per_step=2048,
        max_model_len=32768,
        max_sequence_tokens=32768,
        kv_spans=(KVSpan(bytes_per_token=2 << 16, window_tokens=None),),
    )


def snapshot_of(worker_id: WorkerId, now: float, rng: random.Random) -> WorkerSnapshot:
    num_running = rng.randrange(BATCH_SIZE)
    num_held = num_running * NUM_BLOCKS // BATCH_SIZE
    is_prefill = worker_id.startswith("p")
    reads = () if is_prefill else (_read_cost(rng),)
    return WorkerSnapshot(
        worker_id=worker_id,
        state=WorkerState.READY,
        taken_at=now,
        num_waiting=rng.randrange(4),
        num_running=num_running,
        prefill_backlog_tokens=rng.randrange(8000) if is_prefill else 0,
        step_time=_STEP_TIME,
        num_blocks=NUM_BLOCKS,
        num_free_blocks=NUM_BLOCKS - num_held,
        num_cached_blocks=0,
        num_held_blocks=num_held,
        num_quarantined_blocks=0,
        num_unaccounted_blocks=0,
        prefix_query_tokens=0,
        prefix_hit_tokens=0,
        num_evicted_blocks=0,
        reads=reads,
        bytes_read=(),
    )


def _read_cost(rng: random.Random) -> LinkCost:
    return LinkCost(
        source="PREFILL nodes",
        latency_s=0.0005,
        bytes_per_s=2e10 * rng.uniform(0.9, 1.1),
        num_reads=rng.randrange(1 << 30),
    )


def prefix_of(conversation: int) -> bytes:
    """Names of its blocks, one behind the other."""
    # As a string: numbers that differ in their sign alone are one seed.
    return random.Random(str(conversation)).randbytes(PREFIX_NAME_BYTES * PREFIX_BLOCKS)


def prefix_reports(
    ids: list[WorkerId], num_conversations: int
) -> Iterator[tuple[WorkerId, PrefixReport]]:
    """Every conversation at one worker, dealt out in turn."""
    for number, worker_id in enumerate(ids):
        names = b"".join(
            prefix_of(conversation) for conversation in range(number, num_conversations, len(ids))
        )
        changes = NameChanges(tier=KVTier.DEVICE, added=names, removed=b"")
        yield worker_id, PrefixReport(number=0, changes=(changes,))


def next_turns(num_asks: int, num_conversations: int, rng: random.Random) -> list[PlacementAsk]:
    """Half of them of conversations that somebody has, half of new ones."""
    asks = []
    for number in range(num_asks):
        conversation = rng.randrange(num_conversations) if number % 2 else -1 - number
        names = prefix_of(conversation) + rng.randbytes(PREFIX_NAME_BYTES * NEW_BLOCKS)
        asks.append(
            PlacementAsk(
                request_id="",
                num_prompt_tokens=(PREFIX_BLOCKS + NEW_BLOCKS) * BLOCK_SIZE,
                max_tokens=_MAX_TOKENS,
                prefix_names=names,
            )
        )
    return asks
