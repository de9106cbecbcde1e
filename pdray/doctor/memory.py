"""Whether weights and KV fit into the memory of the host and of its GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pdray.core.errors import ConfigError
from pdray.doctor.finding import Finding, error, ok, warning
from pdray.doctor.local_plan import LocalPlan, PoolHere
from pdray.doctor.size_text import size_text
from pdray.doctor.visible_gpus import GpuMemory, is_here, memory_of_gpus
from pdray.engine.checkpoint import open_checkpoint
from pdray.kv_memory import free_host_bytes, host_memory_bytes, kv_cache_bytes_of_fraction

_PROCESS_BYTES = 400 * 2**20
"""Of a worker's process, or a rank's, before it loads anything: torch and transformers."""
_RAY_USES = 0.95
"""Ray kills workers of a machine with more of its memory in use (RAY_memory_usage_threshold)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNeed:
    """Of one worker: its weights and KV, over all its ranks; ``host_bytes`` are its tiers', and
    its processes'."""

    pool: PoolHere
    weights_bytes: int
    kv_bytes: int

    @property
    def key(self) -> str:
        return f"pools.{self.pool.name}.engine"

    @property
    def device_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes

    @property
    def host_bytes(self) -> int:
        tier_bytes = 0 if self.pool.tiers is None else self.pool.tiers.host_bytes
        processes = _PROCESS_BYTES * self.pool.engine.tensor_parallel
        return tier_bytes + processes + (0 if self.pool.uses_gpu else self.device_bytes)

    @property
    def text(self) -> str:
        weights = size_text(self.weights_bytes) if self.weights_bytes else "not known yet"
        tiers = self.pool.tiers
        tier_text = "" if tiers is None else f", tiers {size_text(tiers.host_bytes)}"
        workers = "1 worker" if self.pool.num_workers == 1 else f"{self.pool.num_workers} workers"
        each = "" if self.pool.num_workers == 1 else " each"
        return f"{workers}{each} with weights {weights}, KV {size_text(self.kv_bytes)}{tier_text}"


def check_memory(plan: LocalPlan) -> Iterator[Finding]:
    needs = []
    for pool in plan.pools:
        if not is_here(pool.engine.device):
            continue  # check_gpus says so
        try:
            needs.append(need_of(plan, pool))
        except ConfigError as problem:
            remedy = "raise kv_memory_fraction, or set kv_cache_bytes in its place"
            yield error(f"pools.{pool.name}.engine", str(problem), remedy)
    for need in needs:
        if need.pool.uses_gpu:
            yield gpu_finding(need, memory_of_gpus())
    if needs:
        yield host_finding(needs, total=host_memory_bytes(), free=free_host_bytes())


def need_of(plan: LocalPlan, pool: PoolHere) -> WorkerNeed:
    """Raises ConfigError where the fraction of memory does not hold the weights."""
    settings, weights = pool.engine, 0
    if plan.model_path is not None:
        engine = plan.config.engine_config(pool.name, pool.node_group, plan.model_path)
        weights = open_checkpoint(plan.model_path).num_bytes_as(engine.dtype)
        kv_bytes = engine.kv_cache_bytes
    elif settings.kv_memory_fraction is not None:
        kv_bytes = kv_cache_bytes_of_fraction(
            settings.kv_memory_fraction, settings.device, weights, settings.tensor_parallel
        )
    else:
        assert settings.kv_cache_bytes is not None, "the config's checks see to it"
        kv_bytes = settings.kv_cache_bytes
    return WorkerNeed(
        pool=pool, weights_bytes=weights, kv_bytes=kv_bytes * settings.tensor_parallel
    )


def host_finding(needs: Sequence[WorkerNeed], *, total: int, free: int) -> Finding:
    """``free`` is what processes could take now."""
    needed = sum(need.pool.num_workers * need.host_bytes for need in needs)
    limit = int(total * _RAY_USES)
    found = "; ".join(f"{need.pool.name}: {need.text}" for need in needs)
    found += f"; with their processes {size_text(needed)} of host memory"
    keys = ", ".join(need.key for need in needs)
    lower = f"lower kv_cache_bytes or kv_memory_fraction in {keys}, tiers' host_bytes or replicas"
    if needed > limit:
        found += f", but the machine, or its container, has {size_text(total)}"
        remedy = f"{lower}, by {size_text(needed - limit)} in all"
        return error("host memory", found, f"{remedy}: past {_RAY_USES:.0%} Ray kills workers")
    if needed > free - (total - limit):
        found += f", but only {size_text(free)} of {size_text(total)} are free now"
        return warning("host memory", found, f"end what uses memory here, or {lower}")
    return ok("host memory", f"{found}; {size_text(free)} of {size_text(total)} are free")


def gpu_finding(need: WorkerNeed, gpus: Sequence[GpuMemory]) -> Finding:
    """Of one GPU, by the one with the least memory: which worker gets which is Ray's to say."""
    pool = need.pool
    per_gpu = need.device_bytes // pool.engine.tensor_parallel
    if 0 < pool.num_gpus < 1:
        per_gpu *= min(pool.num_workers, int(1 / pool.num_gpus))
    total = min(gpu.total_bytes for gpu in gpus)
    free = min(gpu.free_bytes for gpu in gpus)
    found = f"{need.text}: {size_text(per_gpu)} of a GPU's memory"
    if per_gpu > total:
        remedy = (
            f"lower kv_cache_bytes or kv_memory_fraction, by {size_text(per_gpu - total)} a GPU"
        )
        return error(
            need.key,
            f"{found}, but it has {size_text(total)}",
            f"{remedy}, or split the worker over more GPUs with tensor_parallel",
        )
    if per_gpu > free:
        found += f", but only {size_text(free)} are free on one of them"
        return warning(need.key, found, "end what uses the GPU (`nvidia-smi` shows it)")
    return ok(need.key, f"{found}; {size_text(free)} of {size_text(total)} are free")
