"""Which sizes are recorded, what padding is, and that an engine goes on without recordings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pdray.engine.batch import build_batch
from pdray.engine.cuda_graphs import recorder_for
from pdray.engine.decode_graphs import batch_sizes, pad_decodes
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
from pdray.engine.scheduler import ScheduledChunk, StepPlan
from pdray.engine.sequence import BlockTable
from pdray.kvcache.layout import KVGroup
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.rerun_recorder import RerunRecorder
from tests.tiny_model import NUM_TOKENS

SCRATCH = 99


@pytest.fixture(scope="module")
def loaded(tiny_model_path: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(tiny_model_path, dtype="float32", device="cpu")


def engine_of(loaded: LoadedModel, recorder: RerunRecorder | None, **limits: int) -> Engine:
    return Engine(loaded, engine_config(attention_backend="sdpa", **limits), recorder=recorder)


@pytest.mark.parametrize(
    ("max_batch_size", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (32, [1, 2, 4, 8, 16, 24, 32]),
    ],
)
def test_batch_sizes(max_batch_size: int, sizes: list[int]) -> None:
    assert batch_sizes(max_batch_size) == sizes


@pytest.mark.parametrize("max_batch_size", range(1, 700, 9))
def test_every_batch_has_a_size_that_is_not_much_larger(max_batch_size: int) -> None:
    sizes = batch_sizes(max_batch_size)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_batch_size
    for count in range(1, max_batch_size + 1):
        size = min(size for size in sizes if size >= count)
        assert size < 2 * count or count == 1
        assert size - count < 32


def test_padding_is_sequences_of_one_token_in_the_scratch_block() -> None:
    sequences = []
    for number, (first_block, block_ids) in enumerate([(0, [4]), (2, [7, 3, 5])]):
        num_tokens = 16 * (first_block + len(block_ids)) - 2
        sequence = sequence_of(request_of(range(num_tokens), request_id=str(number)))
        sequence.block_tables = [BlockTable(first_block, block_ids)]
        sequences.append(ScheduledChunk(sequence, num_tokens - 1, 1))
    group = KVGroup(
        group_id=0, layer_ids=(0,), sliding_window=40, num_kv_heads=1, k_head_dim=8, v_head_dim=8
    )
    plan = StepPlan(tuple(sequences), num_decodes=2, num_preemptions=0)
    batch = build_batch(plan, (group,), 16).groups[0]
    padded = pad_decodes(batch, 2, SCRATCH)
    assert padded.num_decodes == 4
    assert padded.sliding_window == 40
    assert padded.block_tables_SB.tolist() == [[4, 4, 4], [7, 3, 5], [SCRATCH] * 3, [SCRATCH] * 3]
    assert padded.num_blocks_S.tolist() == [1, 3, 1, 1]
    assert padded.first_blocks_S.tolist() == [0, 2, 0, 0]
    assert padded.query_starts_S.tolist() == [13, 77, 0, 0]
    assert padded.query_lens_S.tolist() == [1, 1, 1, 1]
    assert padded.slot_blocks_T.tolist() == [4, 5, SCRATCH, SCRATCH]
    assert padded.slot_offsets_T.tolist() == [13, 13, 0, 0]
    assert all(
        value.dtype == np.int64
        for value in (padded.block_tables_SB, padded.query_starts_S, padded.slot_blocks_T)
    )


def test_padding_writes_into_no_block_but_the_scratch_block(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, RerunRecorder(), max_batch_size=8)
    storage = engine.storage
    scratch = storage.block(storage.scratch_block_id)
    assert scratch.any()  # while it was recorded
    assert not any(storage.block(block_id).any() for block_id in range(storage.num_blocks))
    prompts = random_prompts([20] * 5, vocab_size=NUM_TOKENS)
    sequences = [sequence_of(request_of(each, request_id=str(each))) for each in prompts]
    for sequence in sequences:
        engine.add(sequence)
    engine.step()
    engine.step()
    before = [storage.block(block_id).clone() for block_id in range(storage.num_blocks)]
    owned = {block_id for sequence in sequences for block_id in sequence.block_ids}
    engine.step()
    for block_id in set(range(storage.num_blocks)) - owned:
        assert torch.equal(storage.block(block_id), before[block_id])


def test_a_step_with_a_prompt_is_not_replayed(loaded: LoadedModel) -> None:
    recorder = RerunRecorder()
    engine = engine_of(loaded, recorder, max_batch_size=4)
    first, second = random_prompts([10, 10], vocab_size=NUM_TOKENS)
    engine.add(sequence_of(request_of(first, request_id="first")))
    engine.step()
    assert recorder.num_replays == 0
    engine.step()
    assert recorder.num_replays == 1
    engine.add(sequence_of(request_of(second, request_id="second")))
    engine.step()
    assert recorder.num_replays == 1


class RefusingRecorder:
    """Gives up at its third recording, as CUDA does: ending a broken recording is an error too."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        if self.num_recorded < 3:
            return RerunRecorder().record(action)
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        finally:
            raise RuntimeError("capture was invalidated")


def test_what_cannot_be_recorded_runs_eagerly_and_is_told_once(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    config = engine_config(attention_backend="sdpa", max_batch_size=8)
    with caplog.at_level(logging.INFO):
        engine = Engine(loaded, config, recorder=RefusingRecorder())
    assert [record.getMessage() for record in caplog.records] == [
        "LlamaForCausalLM: decode steps are not recorded as CUDA graphs, and run eagerly: "
        "operation not permitted when stream is capturing"
    ]
    prompts = random_prompts([5, 20, 3], vocab_size=NUM_TOKENS)
    requests = [
        request_of(prompt, sampling_params(max_tokens=6), request_id=str(prompt))
        for prompt in prompts
    ]
    assert generate(engine, requests) == generate(Engine(loaded, config), requests)


def test_a_model_that_waits_for_the_device_is_not_recorded(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def wait(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert args[0].isfinite().all()

    hook = loaded.model.get_output_embeddings().register_forward_pre_hook(wait)
    try:
        engine = engine_of(loaded, RerunRecorder())
        assert "LlamaForCausalLM" in caplog.text
        engine.add(sequence_of(request_of([5, 6, 7], sampling_params(max_tokens=4))))
        outputs = run_until_idle(engine)
    finally:
        hook.remove()
    assert len(outputs) == 4


def test_a_backend_without_static_plans_runs_eagerly(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(loaded, engine_config(attention_backend="cpu"), recorder=RerunRecorder())
    assert "a CPU has no graphs to record" in caplog.text
    assert generate(engine, [request_of([5, 6, 7])])


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert recorder_for("cpu") is None
