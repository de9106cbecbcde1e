"""All checks, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pdray.doctor.files import check_files
from pdray.doctor.finding import Finding
from pdray.doctor.gpu import check_gpus
from pdray.doctor.local_plan import LocalPlan
from pdray.doctor.memory import check_memory
from pdray.doctor.ports import check_ports
from pdray.doctor.rdma import check_rdma
from pdray.doctor.shared_memory import check_shared_memory
from pdray.doctor.transport import check_transport

Check = Callable[[LocalPlan], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "ports": check_ports,
    "files": check_files,
    "GPUs": check_gpus,
    "memory": check_memory,
    "shared memory": check_shared_memory,
    "transport": check_transport,
    "RDMA": check_rdma,
}
"""By the heading that their findings get. The quick ones that most often find something first."""
