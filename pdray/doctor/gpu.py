"""Whether the GPUs that a config asks for are here, and whether they reach each other and NICs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pdray.doctor.finding import Finding, error, ok, warning
from pdray.doctor.local_plan import LocalPlan, PoolHere
from pdray.doctor.rdma import RDMA_DEVICES, rdma_devices
from pdray.doctor.visible_gpus import can_access_peer, is_here, num_gpus, torch_has_cuda

_MODULES = Path("/sys/module")
_DIRECT_MODULES = ("nvidia_peermem", "nv_peer_mem", "gdrdrv")
"""Any of which lets a NIC, or UCX, reach a GPU's memory."""


def check_gpus(plan: LocalPlan) -> Iterator[Finding]:
    if not plan.uses_gpu:
        yield ok("devices", "every pool computes on the CPU: no GPU is needed")
        return
    num_here = num_gpus()
    yield from (_missing(pool) for pool in plan.pools if not is_here(pool.engine.device))
    if num_here == 0:
        return
    yield num_finding(plan.pools, num_here)
    yield from peer_findings(num_here, can_access_peer)
    if rdma_devices(RDMA_DEVICES):
        yield direct_finding(_MODULES)


def _missing(pool: PoolHere) -> Finding:
    key = f"pools.{pool.name}.engine.device"
    here = f"only {num_gpus()} GPUs are" if num_gpus() else "no GPU is"
    found = f"{pool.engine.device} (on node group {pool.node_group}), but {here} here"
    if not torch_has_cuda():
        found += ": this torch was built without CUDA"
    return error(
        key,
        found,
        "run doctor on a machine of that node group; else the NVIDIA driver (`nvidia-smi` shows "
        f"its GPUs; in a container --gpus all) and torch with CUDA, or {key}: cpu",
    )


def num_finding(pools: tuple[PoolHere, ...], num_here: int) -> Finding:
    num_asked = sum(pool.num_workers * pool.num_gpus for pool in pools if pool.uses_gpu)
    found = f"{num_here} here, {num_asked:g} asked for"
    if num_asked <= num_here:
        return ok("GPUs", found)
    names = ", ".join(f"pools.{pool.name}.replicas" for pool in pools if pool.uses_gpu)
    remedy = f"lower {names}, or serve on a Ray cluster with more machines (--node-group NAME "
    return error("GPUs", found, f"{remedy}looks at this one alone)")


def peer_findings(num: int, can_access: Callable[[int, int], bool]) -> Iterator[Finding]:
    pairs = [(i, j) for i in range(num) for j in range(num) if i != j]
    if not pairs:
        return
    blocked = [f"{i} to {j}" for i, j in pairs if not can_access(i, j)]
    if not blocked:
        yield ok("peer access", f"each of {num} GPUs reads the others' memory")
        return
    yield warning(
        "peer access",
        f"none from GPU {', '.join(blocked)}: KV between them goes through the host",
        "`nvidia-smi topo -p2p r` shows why; PCIe ACS and the IOMMU off in the BIOS, or pools on "
        "GPUs with NVLink",
    )


def direct_finding(modules: Path) -> Finding:
    loaded = [name for name in _DIRECT_MODULES if (modules / name).is_dir()]
    if loaded:
        return ok("GPU to NIC", f"{', '.join(loaded)} is loaded")
    return warning(
        "GPU to NIC",
        f"none of {', '.join(_DIRECT_MODULES)} is loaded: unless the kernel has dma-buf for both, "
        "KV between machines goes through the host",
        "modprobe nvidia_peermem",
    )
