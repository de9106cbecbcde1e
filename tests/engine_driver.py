"""What tests of the engine share: requests, limits, and a loop that steps until all is done."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from pdray.core.request import Request, SamplingParams
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.outputs import StepOutput
from pdray.engine.sequence import Sequence


def engine_config(
    *,
    block_size: int = 16,
    kv_cache_bytes: int = 8 << 20,
    max_tokens_per_step: int = 64,
    max_batch_size: int = 16,
    max_model_len: int = 512,
    dtype: str = "float32",
    attention_backend: str = "auto",
    tensor_parallel: int = 1,
) -> EngineConfig:
    return EngineConfig(
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
        max_tokens_per_step=max_tokens_per_step,
        max_batch_size=max_batch_size,
        max_model_len=max_model_len,
        attention_backend=attention_backend,
        device="cpu",
        dtype=dtype,
        num_threads=1,
        tensor_parallel=tensor_parallel,
    )


def sampling_params(**changes: object) -> SamplingParams:
    """Greedy, 20 tokens, no end but that; ``changes`` replace any field."""
    neutral = SamplingParams(
        max_tokens=20,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        seed=7,
        stop_token_ids=(),
        ignore_eos=True,
    )
    return replace(neutral, **changes)  # type: ignore[arg-type]


def request_of(
    prompt: Iterable[int],
    sampling: SamplingParams | None = None,
    *,
    request_id: str = "r",
    output_token_ids: tuple[int, ...] = (),
    cache_salt: str | None = None,
    session_id: str | None = None,
) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        output_token_ids=output_token_ids,
        sampling=sampling_params() if sampling is None else sampling,
        cache_salt=cache_salt,
        session_id=session_id,
    )


def sequence_of(request: Request, *, is_lent: bool = False) -> Sequence:
    return Sequence.from_request(request, 0, is_lent=is_lent)


def random_prompts(lengths: Iterable[int], *, vocab_size: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def run_until_idle(engine: Engine) -> list[StepOutput]:
    """Steps until nothing can be scheduled, with the pool's integrity checked after each."""
    outputs: list[StepOutput] = []
    while engine._grammars.preparing or engine.wait_for_work(0):
        if engine.wait_for_work(0.01):
            outputs.append(engine.step())
            engine.pool.check_integrity()
    return outputs


def generate(engine: Engine, requests: Iterable[Request]) -> list[list[int]]:
    """All requests together; their output tokens. No block is in use after it."""
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        engine.add(sequence)
    run_until_idle(engine)
    assert engine.num_waiting == engine.num_running == 0
    assert engine.pool.num_available_blocks == engine.pool.num_blocks
    return [sequence.output_token_ids for sequence in sequences]
