from __future__ import annotations

from pathlib import Path

import pytest

from pdray.doctor.finding import Level
from pdray.doctor.shared_memory import check_shared_memory, ptrace_finding, shm_finding
from tests.unit.doctor.conftest import MakePlan


def test_this_machine_is_looked_at(make_plan: MakePlan) -> None:
    subjects = [finding.subject for finding in check_shared_memory(make_plan())]
    assert subjects == ["/dev/shm", "ptrace_scope"]


def test_the_shared_memory_of_a_plain_container_is_too_small() -> None:
    finding = shm_finding(64 * 2**20)
    assert finding.level is Level.WARNING
    assert "64 MiB are free" in finding.found
    assert "--shm-size" in str(finding.remedy)
    assert shm_finding(2**30).level is Level.OK


@pytest.mark.parametrize(
    ("scope", "level"), [(None, Level.OK), ("0", Level.OK), ("1", Level.OK), ("2", Level.WARNING)]
)
def test_yama_decides_whether_ucx_uses_cma(scope: str | None, level: Level, tmp_path: Path) -> None:
    path = tmp_path / "ptrace_scope"
    if scope is not None:
        path.write_text(f"{scope}\n")
    assert ptrace_finding(path).level is level
