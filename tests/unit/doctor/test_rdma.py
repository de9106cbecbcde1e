from __future__ import annotations

import resource
from pathlib import Path

from pdray.doctor.finding import Level
from pdray.doctor.rdma import (
    check_rdma,
    device_findings,
    lock_findings,
    networks,
    rdma_devices,
    tcp_finding,
)
from tests.unit.doctor.conftest import MakePlan


def add_device(folder: Path, name: str, state: str) -> None:
    port = folder / name / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")


def test_this_machine_is_looked_at(make_plan: MakePlan) -> None:
    assert list(check_rdma(make_plan()))


def test_without_rdma_devices_the_networks_for_tcp_are_named(tmp_path: Path) -> None:
    for name, state in (("lo", "unknown"), ("eth0", "up"), ("eth1", "down"), ("ib0", "up")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "operstate").write_text(f"{state}\n")
    (tmp_path / "bonding_masters").touch()
    assert networks(tmp_path) == ["eth0", "ib0"]
    assert rdma_devices(tmp_path / "infiniband") == {}
    finding = tcp_finding(["eth0", "ib0"])
    assert finding.level is Level.OK
    assert "by TCP, over eth0, ib0" in finding.found
    assert "UCX_NET_DEVICES=eth0" in str(finding.remedy)
    assert "no network is up" in tcp_finding([]).found


def test_a_device_needs_an_active_port_and_its_files(tmp_path: Path) -> None:
    add_device(tmp_path, "mlx5_0", "1: DOWN")
    (finding,) = device_findings(rdma_devices(tmp_path), has_verbs=True)
    assert finding.level is Level.WARNING
    assert "mlx5_0 (1: DOWN)" in finding.found
    add_device(tmp_path, "mlx5_1", "4: ACTIVE")
    (finding,) = device_findings(rdma_devices(tmp_path), has_verbs=False)
    assert finding.level is Level.WARNING
    assert "--device /dev/infiniband" in str(finding.remedy)
    (finding,) = device_findings(rdma_devices(tmp_path), has_verbs=True)
    assert finding.level is Level.OK


def test_a_limit_on_locked_memory_is_a_warning() -> None:
    assert list(lock_findings(resource.RLIM_INFINITY)) == []
    (finding,) = lock_findings(64 * 2**10)
    assert finding.level is Level.WARNING
    assert "at most 64 KiB" in finding.found
