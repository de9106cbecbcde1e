"""What a worker with a Llama of 8 billion weights can do on this GPU, for the simulator.

    python -m benchmarks.gpu.profile --output benchmarks/profiles/llama-8b-h100.yaml

As ``pdray profile CONFIG`` measures it: start-ups, steps of all kinds, and reads of KV between two
processes. The weights are random, written to a temporary folder first; the GPU
counts as one node group, whose workers may all read each other's blocks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from benchmarks.gpu.limits import free_memory
from benchmarks.gpu.llama_8b import cpu_sizes, gpu_sizes, random_llama
from pdray.config import load_config
from pdray.profiling.measuring import Effort, measure_profile
from pdray.simulation.profile import profile_data

_CONFIG = """
model: {model}
dtype: bfloat16
node_groups:
  {group}:
    resources_per_worker: {{CPU: 1{gpu}}}
    cost_per_hour: {cost}
pools:
  prefill: {{role: prefill, node_groups: [{group}], engine: &engine {engine}}}
  decode: {{role: decode, node_groups: [{group}], engine: *engine}}
"""
_ENGINES = {
    "cuda": "{device: cuda, kv_memory_fraction: 0.85, max_tokens_per_step: 8192, "
    "max_batch_size: 256, max_model_len: 32768}",
    "cpu": "{kv_cache_bytes: 16MiB, max_tokens_per_step: 256, max_batch_size: 8, "
    "max_model_len: 512}",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", choices=sorted(_ENGINES))
    parser.add_argument("--node-group", default="h100", help="what to call it")
    parser.add_argument("--cost", type=float, default=3.0, help="of an hour, in your currency")
    parser.add_argument("--seconds", type=float, default=40.0, help="of steps")
    parser.add_argument("--startups", type=int, default=3, help="times it is started")
    parser.add_argument("--output", type=Path, default=Path("profile.yaml"))
    options = parser.parse_args(arguments)
    is_gpu = options.device == "cuda"
    llama = (gpu_sizes() if is_gpu else cpu_sizes()).config
    with tempfile.TemporaryDirectory() as folder:
        model_path = Path(folder) / "llama-8b"
        random_llama(llama, torch.device(options.device)).save_pretrained(model_path)
        free_memory(torch.device(options.device))
        config_path = Path(folder) / "config.yaml"
        config_path.write_text(
            _CONFIG.format(
                model=model_path,
                group=options.node_group,
                gpu=", GPU: 1" if is_gpu else "",
                cost=options.cost,
                engine=_ENGINES[options.device],
            )
        )
        config = load_config(str(config_path))
        effort = Effort(seconds=options.seconds, num_startups=options.startups)
        profile = measure_profile(config, None, model_path, effort, print)
    name = torch.cuda.get_device_name() if is_gpu else "a CPU"
    data = profile_data(profile) | {"model": "llama-8b, random weights", "measured_on": name}
    options.output.write_text(yaml.safe_dump(data, sort_keys=False))
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
