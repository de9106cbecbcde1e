"""The GPU paths against the CPU reference and against what the GPU can do, on a machine with
torch, transformers and triton alone.

    python -m benchmarks.gpu.check

First tiny random models of several families, eagerly and as CUDA graphs, in fp32 and bf16; then
the device's own limits, and a Llama of 8 billion random weights beside them. Where nixl is
installed, blocks read through it too. ``--device cpu`` runs the same steps in small.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.attention import (
    SHAPES,
    TOLERANCES,
    decode_bytes_per_s,
    prefill_flops_per_s,
    worst_error,
)
from benchmarks.gpu.blocks import copy_bytes_per_s, wrong_moves
from benchmarks.gpu.correctness import MODELS, check_model
from benchmarks.gpu.limits import Limits, measure_limits, seconds
from benchmarks.gpu.llama_8b import Figure, Llama, cpu_sizes, gpu_sizes
from benchmarks.gpu.nixl_blocks import check_transfer
from benchmarks.machine import cpu_name, describe_machine

MOVE_TARGET = 0.9
"""Of the bytes a second that a plain copy moves."""


def check_models(device: str, backend: str, results: dict[str, Any]) -> bool:
    results["correctness"] = []
    for name in MODELS:
        for checked in check_model(name, device, backend):
            how = "CUDA graphs" if checked.is_recorded else "eager"
            print(
                f"{name}, {checked.dtype}, {how}: {checked.share_within:.1%} of tokens are the "
                f"reference's or nearly, worst {checked.worst:.3f} standard deviations below: "
                f"{'good' if checked.is_good else 'WRONG'}"
            )
            results["correctness"].append(asdict(checked))
    return all(each["is_good"] for each in results["correctness"])


def check_kernels(device: torch.device, backend: str, results: dict[str, Any]) -> bool:
    wrong = wrong_moves(device)
    print(f"block moves: {', '.join(wrong) + ' DIFFER' if wrong else 'equal to the bit'}")
    errors: dict[str, float] = {}
    if device.type == "cuda":
        errors = {name: worst_error(name, "bfloat16", device, backend) for name in SHAPES}
        print(f"attention, largest errors (allowed {TOLERANCES['bfloat16']}): {errors}")
    results["wrong_moves"], results["attention_errors"] = wrong, errors
    return not wrong and all(error < TOLERANCES["bfloat16"] for error in errors.values())


def measure_kernels(
    device: torch.device, backend: str, limits: Limits, results: dict[str, Any]
) -> None:
    is_gpu = device.type == "cuda"
    shares = {
        f"block {kind}": rate / limits.copy_bytes_per_s
        for kind, rate in copy_bytes_per_s(
            device,
            partial(seconds, device),
            num_blocks=8192 if is_gpu else 64,
            target=torch.bfloat16,
        ).items()
    }
    shares["attention of decodes"] = (
        decode_bytes_per_s(
            device,
            partial(seconds, device),
            num_seqs=64 if is_gpu else 2,
            context=1024 if is_gpu else 64,
            backend=backend,
        )
        / limits.read_bytes_per_s
    )
    shares["attention of prompts"] = (
        prefill_flops_per_s(
            device,
            partial(seconds, device),
            num_prompts=2,
            num_tokens=4096 if is_gpu else 64,
            backend=backend,
        )
        / limits.gemm_flops_per_s
    )
    for name, share in shares.items():
        target = f" (target {MOVE_TARGET:.0%})" if name.startswith("block") else ""
        print(f"{name}: {share:.0%} of the limit{target}")
    results["kernels"] = shares


def measure(device: torch.device, backend: str, ends_at: float, results: dict[str, Any]) -> None:
    limits = measure_limits(device)
    print_limits(limits)
    results["limits"] = asdict(limits)
    measure_kernels(device, backend, limits, results)
    sizes = cpu_sizes() if device.type == "cpu" else gpu_sizes()
    llama = Llama(device, sizes, limits, backend)
    results["figures"] = []
    for figure in figures(llama, sizes.batch_sizes, ends_at):
        print(
            f"{figure.name}: {figure.tokens_per_s:,.0f} tokens/s, {figure.step_s * 1e3:.2f} ms, "
            f"{figure.share:.0%} of the limit (target {figure.target:.0%})"
        )
        results["figures"].append(asdict(figure) | {"share": figure.share})


def figures(llama: Llama, batch_sizes: tuple[int, ...], ends_at: float) -> Iterator[Figure]:
    """As many as there is time for."""
    measurements = [lambda size=size: llama.decode(size) for size in batch_sizes]
    for number, measurement in enumerate([*measurements, llama.prefill]):
        if time.monotonic() > ends_at:
            print(f"out of time: {len(measurements) + 1 - number} figures are not taken")
            return
        yield measurement()


def print_limits(limits: Limits) -> None:
    print(
        f"limits: read {limits.read_bytes_per_s / 1e9:,.0f} GB/s, "
        f"copy {limits.copy_bytes_per_s / 1e9:,.0f} GB/s (read and written), "
        f"bf16 products {limits.gemm_flops_per_s / 1e12:,.2f} TFLOP/s"
    )


def write_results(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--attention", help="attention backend (default: auto; sdpa on a CPU)")
    parser.add_argument("--seconds", type=float, default=420.0, help="no figure is begun after it")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    # The one for CPUs plans no batches that stay, as graphs need them.
    backend = options.attention or ("sdpa" if device.type == "cpu" else "auto")
    if device.type != "cpu" and not torch.cuda.is_available():
        print(f"{device}: this machine has no CUDA device; accepted here: --device cpu")
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    print(f"on {name}")
    ends_at = time.monotonic() + options.seconds
    results: dict[str, Any] = {"device": name, "machine": asdict(describe_machine())}
    is_good = check_models(options.device, backend, results)
    is_good &= check_kernels(device, backend, results)
    if importlib.util.find_spec("nixl") is None:
        print("nixl: not installed, not checked")
    else:
        is_good &= check_transfer(device)
    measure(device, backend, ends_at, results)
    write_results(options.output_dir, results)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
