"""The GPU paths against the CPU reference, on a machine with torch and transformers alone.

    python -m benchmarks.gpu.check

Tokens of tiny random models on the GPU and on the CPU in fp32, and, where nixl (with msgspec) is
installed, blocks read from one arena in GPU memory into another, byte for byte and timed against
a plain copy. ``--device cpu`` runs the same steps without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig

from benchmarks.machine import cpu_name
from pdray.core.request import Request, SamplingParams
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence

VOCAB_SIZE = 512
PROMPT_LENGTHS = [1, 15, 16, 17, 70, 130]
NUM_TOKENS = 32
TRANSFER_BLOCKS = 512
BLOCK_BYTES = 512 * 1024
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Wide, or the logits of a random model nearly tie and say nothing.
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(num_hidden_layers=3, **SIZES),
    "gemma3, window of 24": Gemma3TextConfig(
        num_hidden_layers=6, head_dim=16, sliding_window=24, **SIZES
    ),
}


def engine_on(device: str, folder: Path) -> Engine:
    return Engine.load(
        folder,
        EngineConfig(
            block_size=16,
            kv_cache_bytes=16 << 20,
            max_tokens_per_step=64,
            max_batch_size=8,
            max_model_len=512,
            attention_backend="sdpa",
            device=device,
            dtype="float32",
            num_threads=None,
            tensor_parallel=1,
        ),
    )


def greedy_tokens(engine: Engine) -> list[list[int]]:
    """Of all prompts in one batch."""
    rng = random.Random(0)
    sampling = SamplingParams(
        max_tokens=NUM_TOKENS,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        seed=0,
        stop_token_ids=(),
        ignore_eos=True,
    )
    sequences = []
    for number, length in enumerate(PROMPT_LENGTHS):
        request = Request(
            request_id=str(number),
            prompt_token_ids=tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(length)),
            output_token_ids=(),
            sampling=sampling,
        )
        sequences.append(Sequence.from_request(request, 1, is_lent=False))
        engine.add(sequences[-1])
    while engine.wait_for_work(0):
        engine.step()
    return [sequence.output_token_ids for sequence in sequences]


def check_tokens(name: str, config: PreTrainedConfig, device: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        expected = greedy_tokens(engine_on("cpu", Path(folder)))
        tokens = greedy_tokens(engine_on(device, Path(folder)))
    num_equal = sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True))
    print(f"{name}: {num_equal} of {len(expected)} sequences have the CPU's tokens")
    return num_equal == len(expected)


def check_transfer(device: str) -> bool:
    from pdray.transfer.base import KVRegion, TransferState
    from pdray.transfer.nixl import NixlTransport

    shape = (TRANSFER_BLOCKS, BLOCK_BYTES)
    source = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    target = torch.zeros(shape, dtype=torch.uint8, device=device)
    device_id = source.get_device() if source.is_cuda else None
    owner, reader = (
        NixlTransport(
            name,
            KVRegion(
                address=arena.data_ptr(),
                num_blocks=TRANSFER_BLOCKS,
                block_bytes=BLOCK_BYTES,
                device_id=device_id,
            ),
        )
        for name, arena in (("owner", source), ("reader", target))
    )
    reader.add_peer("owner", owner.describe())
    order = random.Random(0).sample(range(TRANSFER_BLOCKS), TRANSFER_BLOCKS)
    pull_s = 0.0
    for _ in range(3):  # the first one makes the connection
        started_at = time.perf_counter()
        transfer_id = reader.pull("owner", order, range(TRANSFER_BLOCKS))
        while (state := reader.poll(transfer_id)) is TransferState.PENDING:
            owner.progress()
        pull_s = time.perf_counter() - started_at
    is_equal = state is TransferState.DONE and torch.equal(target, source[order])
    copied = source.clone()  # its pages are there: the copy alone is timed
    synchronize(device)
    started_at = time.perf_counter()
    copied.copy_(source)
    synchronize(device)
    copy_s = time.perf_counter() - started_at
    num_gb = source.numel() / 1e9
    print(
        f"nixl: {num_gb / pull_s:.1f} GB/s in blocks of {BLOCK_BYTES // 1024} KiB, plain copy "
        f"{num_gb / copy_s:.1f} GB/s, bytes {'equal' if is_equal else 'DIFFER'}"
    )
    reader.close()
    owner.close()
    return is_equal


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    device: str = parser.parse_args().device
    if device != "cpu" and not torch.cuda.is_available():
        print(f"{device}: this machine has no CUDA device; accepted here: --device cpu")
        return 2
    print(f"on {torch.cuda.get_device_name() if device != 'cpu' else cpu_name()}")
    results = [check_tokens(name, config, device) for name, config in MODELS.items()]
    if importlib.util.find_spec("nixl") is None:
        print("nixl: not installed, not checked")
    else:
        results.append(check_transfer(device))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
