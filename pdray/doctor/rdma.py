"""What there is for reads between machines: RDMA devices, else networks for TCP."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from pdray.doctor.finding import Finding, ok, warning
from pdray.doctor.local_plan import LocalPlan
from pdray.doctor.size_text import size_text

RDMA_DEVICES = Path("/sys/class/infiniband")
_NETWORKS = Path("/sys/class/net")
_VERBS = Path("/dev/infiniband")


def check_rdma(plan: LocalPlan) -> Iterator[Finding]:
    devices = rdma_devices(RDMA_DEVICES)
    if not devices:
        yield tcp_finding(networks(_NETWORKS))
        return
    yield from device_findings(devices, has_verbs=any(_VERBS.glob("uverbs*")))
    yield from lock_findings(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])


def rdma_devices(folder: Path) -> dict[str, list[str]]:
    """The states of each device's ports, as in ``4: ACTIVE``."""
    if not folder.is_dir():
        return {}
    return {
        device.name: [state.read_text().strip() for state in sorted(device.glob("ports/*/state"))]
        for device in sorted(folder.iterdir())
    }


def networks(folder: Path) -> list[str]:
    """Those that are up, but for loopback; tunnels and bridges among them."""
    return [
        device.name
        for device in sorted(folder.iterdir())
        if device.name != "lo"
        and (state := device / "operstate").is_file()
        and state.read_text().strip() in {"up", "unknown"}
    ]


def tcp_finding(names: list[str]) -> Finding:
    over = f"over {', '.join(names)}" if names else "but no network is up"
    found = f"no RDMA device is here: between machines KV moves by TCP, {over}"
    remedy = "for several machines: NICs with RDMA and their drivers; in a container --device "
    remedy += "/dev/infiniband"
    if len(names) > 1:
        remedy += f"; UCX_NET_DEVICES={names[0]} keeps UCX to a network that all machines reach"
    return ok("between machines", found, remedy)


def device_findings(devices: dict[str, list[str]], *, has_verbs: bool) -> Iterator[Finding]:
    active = [name for name, ports in devices.items() if any("ACTIVE" in port for port in ports)]
    states = ", ".join(f"{name} ({' '.join(ports)})" for name, ports in devices.items())
    if not active:
        remedy = "see to cable, switch and subnet manager (`ibstat`); until then KV moves by TCP"
        yield warning("RDMA devices", f"none has an active port: {states}", remedy)
    elif not has_verbs:
        found = f"{states}, but /dev/infiniband is not here: between machines KV moves by TCP"
        yield warning("RDMA devices", found, "in a container --device /dev/infiniband")
    else:
        yield ok("RDMA devices", f"{states}: between machines UCX reads by RDMA")


def lock_findings(limit: int) -> Iterator[Finding]:
    if limit == resource.RLIM_INFINITY:
        return
    yield warning(
        "locked memory",
        f"at most {size_text(limit)} may be locked, and RDMA locks all KV memory",
        "`ulimit -l unlimited` before Ray starts; in a container --ulimit memlock=-1",
    )
