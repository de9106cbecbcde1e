"""The processes that one command started, and the CPU time that each kind of them takes.

They are found by a mark in their environment, which children inherit: neither a daemon that
leaves the process tree nor somebody else's Ray is counted wrongly. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "PDRAY_BENCHMARK_MARK"

# What a command line holds, and what that process is; the first that fits counts.
KINDS = (
    ("gcs_server", "ray gcs"),
    ("raylet/raylet", "ray raylet"),
    ("haproxy", "haproxy"),
    ("dashboard/agent.py", "ray dashboard agent"),
    ("dashboard/dashboard.py", "ray dashboard"),
    ("runtime_env/agent", "ray runtime env agent"),
    ("log_monitor.py", "ray log monitor"),
    ("autoscaler", "ray autoscaler"),
    ("resource_tracker", "python resource tracker"),
    ("pdray", "pdray serve"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    pid: int
    kind: str
    cpu_s: float


def kind_of(command_line: str) -> str:
    """A word for what a process is. Ray's workers name themselves ``ray::Class.method``."""
    if command_line.startswith("ray::"):
        return command_line.split()[0].split(".")[0]
    for part, kind in KINDS:
        if part in command_line:
            return kind
    return command_line.split()[0] if command_line else "(ended)"


def marked_processes(mark: str) -> list[Process]:
    """Every live process whose environment has the mark, zombies left out."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            command_line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            stat = (folder / "stat").read_text()
        except OSError:
            continue  # it ended, or it is not ours to see
        state, cpu_s = parse_stat(stat)
        if state != "Z":
            kind = kind_of(command_line.decode(errors="replace").strip())
            found.append(Process(pid=int(folder.name), kind=kind, cpu_s=cpu_s))
    return found


def parse_stat(stat: str) -> tuple[str, float]:
    """State letter and CPU seconds, user and system, of a ``/proc/PID/stat``."""
    # The name is in brackets and may itself hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return fields[0], ticks / os.sysconf("SC_CLK_TCK")


def cores_by_kind(
    before: list[Process], after: list[Process], seconds: float
) -> Mapping[str, float]:
    """CPU seconds per second of each kind, largest first. Processes that ended in between are
    not counted; those that began are, from their start."""
    earlier = {process.pid: process.cpu_s for process in before}
    cores: dict[str, float] = {}
    for process in after:
        used_s = process.cpu_s - earlier.get(process.pid, 0.0)
        cores[process.kind] = cores.get(process.kind, 0.0) + used_s / seconds
    return dict(sorted(cores.items(), key=lambda item: -item[1]))
