"""What NIXL and UCX really use between two workers of this machine: tried, not guessed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pdray.config import ucx_settings
from pdray.core.errors import TransferError
from pdray.core.snapshot import Role
from pdray.doctor.finding import Finding, error, ok, warning
from pdray.doctor.local_plan import LocalPlan, PoolHere
from pdray.doctor.read_probe import REPORT, UCX_LOGS, ProbeReport
from pdray.doctor.size_text import size_text
from pdray.doctor.ucx_log import ReadPath, errors_in, read_paths
from pdray.doctor.visible_gpus import num_gpus

_TIMEOUT_S = 120.0
_IPC_READS = "UCX_CUDA_IPC_ENABLE_GET_ZCOPY"


def check_transport(plan: LocalPlan) -> Iterator[Finding]:
    if plan.config.transfer.transport != "nixl":
        yield error(
            "transfer.transport",
            f"{plan.config.transfer.transport} works within one process only",
            "transfer.transport: nixl",
        )
        return
    num_here = num_gpus() if plan.uses_gpu else 0
    for owner, reader in device_pairs(plan.pools):
        if num_here or (owner, reader) == ("cpu", "cpu"):
            yield read_finding(_on(owner, 0), _on(reader, num_here - 1), ucx_settings())


def device_pairs(pools: tuple[PoolHere, ...]) -> list[tuple[str, str]]:
    """(whose blocks, who reads them), of prefill and decode workers; of all where one phase is
    not here."""

    def devices_of(phase: Role) -> list[str]:
        chosen = [pool for pool in pools if phase in Role.parse(pool.role)] or pools
        return ["cuda" if pool.uses_gpu else "cpu" for pool in chosen]

    owners, readers = devices_of(Role.PREFILL), devices_of(Role.DECODE)
    return list(dict.fromkeys((owner, reader) for owner in owners for reader in readers))


def _on(kind: str, index: int) -> str:
    """On two GPUs where there are two."""
    return kind if kind == "cpu" else f"cuda:{index}"


def read_finding(owner: str, reader: str, settings: Mapping[str, str]) -> Finding:
    """``settings`` are what the environment tells UCX, here and so in the processes that read."""
    subject = f"NIXL, {owner} to {reader}"
    try:
        report, log = _read(owner, reader)
    except TransferError as problem:
        return error(
            subject,
            f"two workers on this machine cannot read each other's memory: {problem}",
            "`pip install nixl`, of torch's CUDA version; UCX_TLS out of the environment; UCX's "
            "own words: `UCX_LOG_LEVEL=info pdray serve CONFIG`, in the workers' logs",
        )
    paths = read_paths(log)
    found = _found(report, paths, settings)
    if not any(path.is_tcp for path in paths):
        return ok(subject, found)
    is_on_host = (owner, reader) == ("cpu", "cpu")
    return warning(subject, found, _tcp_remedy(settings, is_on_host=is_on_host))


def _read(owner: str, reader: str) -> tuple[ProbeReport, list[str]]:
    """A read in processes of their own, and UCX's log. Raises TransferError."""
    with tempfile.TemporaryDirectory(prefix="pdray-doctor-") as folder:
        command = [sys.executable, "-m", "pdray.doctor.read_probe", folder, owner, reader]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise TransferError(f"no answer within {_TIMEOUT_S:g} s") from None
        texts = [path.read_text(errors="replace") for path in Path(folder).glob(UCX_LOGS)]
        log = "\n".join(texts).splitlines()
        path = Path(folder) / REPORT
        if not path.exists():
            last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            raise TransferError(f"the process that tried it ended with {done.returncode}: {last}")
        report = msgspec.json.decode(path.read_bytes(), type=ProbeReport)
    if report.failure is not None:
        raise TransferError("; ".join([report.failure, *errors_in(log)]))
    return report, log


def _found(report: ProbeReport, paths: list[ReadPath], settings: Mapping[str, str]) -> str:
    through = ", ".join(path.text for path in paths) or "what it does not say"
    rate = report.num_bytes / report.read_s / 1e9
    found = f"between two workers on this machine UCX reads through {through}"
    found += f"; {size_text(report.num_bytes)} came at {rate:.1f} GB/s"
    if settings:
        found += f"; the environment has {', '.join(f'{k}={v}' for k, v in settings.items())}"
    return found


def _tcp_remedy(settings: Mapping[str, str], *, is_on_host: bool) -> str:
    if "UCX_TLS" in settings:
        return "take UCX_TLS out of the environment, or let it have cma, cuda_ipc and cuda_copy"
    if is_on_host:
        return (
            "workers of one user in one container, or containers with --pid=host; in a container "
            "--cap-add SYS_PTRACE; `sysctl kernel.yama.ptrace_scope` should be 0 or 1"
        )
    if settings.get(_IPC_READS, "on") != "on":
        return f"take {_IPC_READS} out of the environment: without NVLink GPUs need it to be on"
    return "workers in one container, or containers with --ipc=host --pid=host"
