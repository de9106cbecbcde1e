"""One engine loaded in this process, part by part; prints one line of JSON.

    python -m benchmarks.loading --model PATH --dtype float32 --threads 1

The parts are the loader's own functions with a stopwatch round them: what runs is what ships.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.process_memory import anonymous_bytes, peak_resident_bytes
from benchmarks.stopwatch import Stopwatch

KV_CACHE_BYTES = 1 << 30
PARTS = ("config", "weights", "probe", "kernels", "fusion", "packing", "KV arena")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """``part_s`` by the names of PARTS; ``total_s`` is all of ``Engine.load``. Anonymous memory
    is what the process holds of its own, mapped files left out."""

    import_s: float
    total_s: float
    part_s: dict[str, float]
    anonymous_bytes_before: int
    anonymous_bytes_after: int
    peak_resident_bytes: int


def load(path: Path, dtype: str, num_threads: int) -> Loading:
    """To be called once in a process: the stopwatch stays where it is."""
    started_at = time.perf_counter()
    from pdray.engine import model, runner
    from pdray.engine.config import EngineConfig
    from pdray.engine.engine import Engine

    import_s = time.perf_counter() - started_at
    stopwatch = Stopwatch(PARTS)
    stopwatch.watch("config", model, "open_checkpoint")
    stopwatch.watch("config", model, "read_config")
    stopwatch.watch("weights", model, "read_model")
    stopwatch.watch("probe", model, "_probe")
    stopwatch.watch("kernels", model, "find_kernels")
    stopwatch.watch("fusion", model, "fuse_model")
    stopwatch.watch("packing", model, "pack_linears")
    stopwatch.watch("KV arena", runner, "KVStorage")
    config = EngineConfig(
        block_size=16,
        kv_cache_bytes=KV_CACHE_BYTES,
        max_tokens_per_step=512,
        max_batch_size=32,
        max_model_len=1024,
        attention_backend="auto",
        device="cpu",
        dtype=dtype,
        num_threads=num_threads,
        tensor_parallel=1,
    )
    before = anonymous_bytes()
    started_at = time.perf_counter()
    engine = Engine.load(path, config)
    total_s = time.perf_counter() - started_at
    found = Loading(
        import_s=import_s,
        total_s=total_s,
        part_s=stopwatch.seconds,
        anonymous_bytes_before=before,
        anonymous_bytes_after=anonymous_bytes(),
        peak_resident_bytes=peak_resident_bytes(),
    )
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(asdict(load(args.model, args.dtype, args.threads))))


if __name__ == "__main__":
    main()
