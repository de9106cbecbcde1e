"""What processes of this machine share: /dev/shm, and the right to read each other's memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pdray.doctor.finding import Finding, ok, warning
from pdray.doctor.local_plan import LocalPlan
from pdray.doctor.size_text import size_text
from pdray.serve.ray_session import OBJECT_STORE_BYTES

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_SHARED = Path("/dev/shm")


def check_shared_memory(plan: LocalPlan) -> Iterator[Finding]:
    yield shm_finding(shutil.disk_usage(_SHARED).free)
    yield ptrace_finding(_PTRACE_SCOPE)


def shm_finding(free_bytes: int) -> Finding:
    """A cluster's Ray takes 30% of the machine's memory, but no more than there is of this."""
    needed = size_text(OBJECT_STORE_BYTES)
    found = f"{size_text(free_bytes)} are free, {needed} go to Ray's object store"
    if free_bytes < OBJECT_STORE_BYTES:
        remedy = "in a container --shm-size=1g; elsewhere `mount -o remount,size=1G /dev/shm`"
        return warning(str(_SHARED), f"{found}: it will be a file in /tmp, and slower", remedy)
    return ok(str(_SHARED), found)


def ptrace_finding(path: Path) -> Finding:
    """Yama's scope, as UCX reads it: with 1 it asks the kernel to let others in, from 2 on it does
    not even try."""
    scope = int(path.read_text()) if path.exists() else 0
    if scope < 2:
        return ok("ptrace_scope", f"{scope}: UCX's cma may copy between processes")
    return warning(
        "ptrace_scope",
        f"{scope}: UCX does without cma, so host memory moves between workers over TCP",
        "sysctl kernel.yama.ptrace_scope=1",
    )
