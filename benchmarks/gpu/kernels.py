"""What a step of decodes spends its time on: the kernels of a Llama of 8 billion random weights.

python -m benchmarks.gpu.kernels --batch 1 64
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.engines import add_greedy, random_prompts, steps
from benchmarks.gpu.limits import measure_limits
from benchmarks.gpu.llama_8b import Llama, cpu_sizes, gpu_sizes

_NUM_STEPS = 20
_NUM_SHOWN = 14
_VOCABULARY = 100


def show_kernels(llama: Llama, batch_size: int, context: int) -> None:
    prompts = random_prompts([context] * batch_size, _VOCABULARY, seed=batch_size)
    add_greedy(llama.engine, prompts, _NUM_STEPS + 8)
    decodes = (step for step in steps(llama.engine) if step.num_prefill_tokens == 0)
    list(islice(decodes, 4))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        timed = list(islice(decodes, _NUM_STEPS))
    wall_ms = sum(step.step_s for step in timed) / _NUM_STEPS * 1e3
    found = [each for each in profiled.key_averages() if each.self_device_time_total > 0]
    found.sort(key=lambda each: each.self_device_time_total, reverse=True)
    busy_ms = sum(each.self_device_time_total for each in found) / _NUM_STEPS / 1e3
    print(f"batch {batch_size}: {wall_ms:.2f} ms a step, {busy_ms:.2f} ms of it in kernels")
    for each in found[:_NUM_SHOWN]:
        step_us, num_calls = each.self_device_time_total / _NUM_STEPS, each.count / _NUM_STEPS
        print(f"  {step_us:8.1f} us  {num_calls:6.1f} calls  {each.key[:100]}")
    for _ in decodes:
        pass


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu, small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    sizes = cpu_sizes() if device.type == "cpu" else gpu_sizes()
    backend = "sdpa" if device.type == "cpu" else "auto"
    llama = Llama(device, sizes, measure_limits(device), backend)
    for batch_size in options.batch:
        show_kernels(llama, min(batch_size, max(sizes.batch_sizes)), sizes.context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
