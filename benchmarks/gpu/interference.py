"""Decode never waits, on a GPU: steady decodes with long prompts on top, by how much of a prompt
one step may compute.

    python -m benchmarks.gpu.interference

One engine for each way, with a Llama of 8 billion random weights: whole prompts, fixed chunks, and
chunks sized each step to keep to a target of twice the gap that decodes have alone. The same
prompts arrive at the same times for all. Prompts computed elsewhere would leave the decodes alone:
that is the first line.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.engines import BLOCK_SIZE, engine_config, random_prompts
from benchmarks.gpu.limits import free_memory
from benchmarks.gpu.llama_8b import cpu_sizes, gpu_sizes, random_llama
from benchmarks.greedy import greedy_sequence
from benchmarks.result_file import save_result
from benchmarks.step_time import percentile
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.model import adopt_model
from pdray.engine.sequence import Sequence

ITL_OF_ALONE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``chunks``: the fixed ones, the largest of which takes a whole prompt."""

    num_decodes: int
    context_tokens: int
    prompt_tokens: int
    chunks: tuple[int, ...]
    prompts_per_s: float


GPU_LOAD = Load(
    num_decodes=32,
    context_tokens=1024,
    prompt_tokens=8000,
    chunks=(16384, 2048, 512),
    prompts_per_s=1.5,
)
CPU_LOAD = Load(
    num_decodes=2, context_tokens=32, prompt_tokens=300, chunks=(512, 64), prompts_per_s=4.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Of gaps between the tokens of one decode, and of prompts' first tokens after they came.
    ``num_late`` of them had none when the time was over."""

    way: str
    itl_p50_s: float
    itl_p99_s: float
    itl_max_s: float
    decode_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_max_s: float | None
    num_prompts: int
    num_late: int


class Trial:
    def __init__(self, model: PreTrainedModel, config: EngineConfig, load: Load) -> None:
        self._load = load
        self._vocab_size = int(model.config.vocab_size)
        loaded = adopt_model(model.eval().requires_grad_(False), model.config, Path())
        self.engine = Engine.of(loaded, None, config)
        self._rng = random.Random(1)
        self._decodes: set[Sequence] = set()
        self._last_at: dict[Sequence, float] = {}
        self._gaps: list[float] = []
        self._came_at: dict[Sequence, float] = {}
        self._ttfts: list[float] = []
        self._warm_up()

    def run(self, way: str, seconds: float, arrivals: Iterator[float]) -> Finding:
        """``arrivals`` in seconds from now."""
        self._last_at.clear()
        self._gaps.clear()
        self._ttfts.clear()
        started_at = time.perf_counter()
        next_at = next(arrivals)
        num_prompts = 0
        while (now := time.perf_counter() - started_at) < seconds:
            while next_at <= now:
                self._add_prompt(started_at + next_at)
                num_prompts += 1
                next_at = next(arrivals)
            self._step()
        return Finding(
            way=way,
            itl_p50_s=percentile(self._gaps, 0.5),
            itl_p99_s=percentile(self._gaps, 0.99),
            itl_max_s=max(self._gaps),
            decode_tokens_per_s=len(self._gaps) / seconds,
            ttft_p50_s=statistics.median(self._ttfts) if self._ttfts else None,
            ttft_max_s=max(self._ttfts, default=None),
            num_prompts=num_prompts,
            num_late=len(self._came_at),
        )

    def _warm_up(self) -> None:
        """Until kernels are compiled, all decode, and the step times of prompts are known."""
        for _ in range(self._load.num_decodes):
            self._add_decode()
        for _ in range(3):
            self._add_prompt(time.perf_counter())
            while self._came_at:
                self._step()
        for _ in range(20):
            self._step()

    def _add_decode(self) -> None:
        """Of a length that none reaches while others do: not all end at once."""
        (prompt,) = random_prompts(
            [self._load.context_tokens], self._vocab_size, self._rng.randrange(1 << 30)
        )
        room = self.engine.max_sequence_tokens - self._load.context_tokens
        seq = greedy_sequence(prompt, self._rng.randint(room // 2, room - 1), self._new_id())
        self._decodes.add(seq)
        self.engine.add(seq)

    def _add_prompt(self, came_at: float) -> None:
        (prompt,) = random_prompts(
            [self._load.prompt_tokens], self._vocab_size, self._rng.randrange(1 << 30)
        )
        seq = greedy_sequence(prompt, 1, self._new_id())
        self._came_at[seq] = came_at
        self.engine.add(seq)

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(64):x}"

    def _step(self) -> None:
        output = self.engine.step()
        now = time.perf_counter()
        for each in output.sequences:
            seq = each.sequence
            if not each.token_ids:
                continue
            if seq in self._came_at:
                self._ttfts.append(now - self._came_at.pop(seq))
                continue
            if seq in self._last_at:
                self._gaps.append(now - self._last_at[seq])
            self._last_at[seq] = now
            if each.has_ended:
                self._decodes.remove(seq)
                del self._last_at[seq]
                self._add_decode()


def arrivals(prompts_per_s: float, seed: int) -> Iterator[float]:
    rng, at = random.Random(seed), 0.0
    while True:
        at += rng.expovariate(prompts_per_s)
        yield at


def configs(device: str, backend: str, load: Load) -> dict[str, EngineConfig]:
    longest = max(load.prompt_tokens, 8 * load.context_tokens) + BLOCK_SIZE
    base = engine_config(
        device,
        "bfloat16",
        attention_backend=backend,
        kv_cache_bytes=(24 << 30) if device.startswith("cuda") else (64 << 20),
        max_batch_size=2 * load.num_decodes + 16,
        max_model_len=longest,
    )
    return {
        ("whole prompts" if chunk > load.prompt_tokens else f"chunks of {chunk}"): replace(
            base, max_tokens_per_step=chunk
        )
        for chunk in load.chunks
    }


def measure(arguments: argparse.Namespace, load: Load) -> Iterator[Finding]:
    llama = (cpu_sizes() if arguments.device == "cpu" else gpu_sizes()).config
    device = torch.device(arguments.device)
    ways = configs(arguments.device, arguments.attention, load)
    alone: Finding | None = None
    whole, *fixed = ways.items()
    for way, config in [whole, ("soft", whole[1]), *fixed]:
        if alone is not None and way == "soft":
            config = replace(config, itl_s=ITL_OF_ALONE * alone.itl_p50_s)
        torch.manual_seed(0)
        trial = Trial(random_llama(llama, device), config, load)
        if alone is None:
            alone = trial.run("decode alone", arguments.seconds / 2, iter([float("inf")]))
            yield alone
        yield trial.run(way, arguments.seconds, arrivals(load.prompts_per_s, seed=0))
        del trial
        free_memory(device)


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f} s"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu, small")
    parser.add_argument("--attention", default="auto", help="attention backend")
    parser.add_argument("--seconds", type=float, default=12.0, help="of load, for each way")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args(argv)
    load = CPU_LOAD if arguments.device == "cpu" else GPU_LOAD
    findings = []
    for each in measure(arguments, load):
        findings.append(each)
        print(
            f"{each.way}: ITL P50 {each.itl_p50_s * 1e3:.1f} ms, P99 {each.itl_p99_s * 1e3:.1f}, "
            f"max {each.itl_max_s * 1e3:.1f}; {each.decode_tokens_per_s:,.0f} tokens/s decoded; "
            f"TTFT P50 {_seconds(each.ttft_p50_s)}, max {_seconds(each.ttft_max_s)}; "
            f"{each.num_prompts} prompts, {each.num_late} late",
            flush=True,
        )
    name = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    path = save_result(
        "gpu-interference",
        arguments,
        device=name,
        load=asdict(load),
        findings=[asdict(each) for each in findings],
    )
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
