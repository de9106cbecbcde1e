"""Logs as UCX wrote them: 1.23 with a title of two lines, and those before it."""

from __future__ import annotations

from pdray.doctor.ucx_log import errors_in, read_paths

WRITE = """
[17.27] [vm:7331 :0]   +--------+-------------+-----------------------------------+
[17.27] [vm:7331 :0]   | reader-f406e12c intra-node cfg#1                         |
[17.27] [vm:7331 :0]   | remote memory write by ucp_put* from host memory to host |
[17.27] [vm:7331 :0]   +--------+-------------+-----------------------------------+
[17.27] [vm:7331 :0]   | Range  | Description |              Config               |
[17.27] [vm:7331 :0]   +--------+-------------+-----------------------------------+
[17.27] [vm:7331 :0]   | 0..inf | zero-copy   | 52% on tcp/lo and 48% on tcp/eth0 |
[17.27] [vm:7331 :0]   +--------+-------------+-----------------------------------+
"""
READ = """
[17.27] [vm:7331 :0]   +--------+-------------+-------------------------------------------+
[17.27] [vm:7331 :0]   | reader-f406e12c intra-node cfg#1                                 |
[17.27] [vm:7331 :0]   | remote memory read by ucp_get*(multi) into host memory from host |
[17.27] [vm:7331 :0]   +--------+-------------+-------------------------------------------+
[17.27] [vm:7331 :0]   | Range  | Description |                  Config                   |
[17.27] [vm:7331 :0]   +--------+-------------+-------------------------------------------+
[17.27] [vm:7331 :0]   | 0..inf | zero-copy   | cma/memory                                |
[17.27] [vm:7331 :0]   +--------+-------------+-------------------------------------------+
"""
OLD_READ = """
[17.67] [m:1:0] +------------+------------------------------------+
[17.67] [m:1:0] | intra-node cfg#1 | remote memory read by ucp_get* into cuda/GPU0 from cuda/GPU1 |
[17.67] [m:1:0] +------------+-----------+----------+
[17.67] [m:1:0] |      0..2K | copy-out  | tcp/eth0 |
[17.67] [m:1:0] |  2049..inf | zero-copy | 60% on cuda_ipc/cuda and 40% on rc_mlx5/mlx5_0:1 |
[17.67] [m:1:0] +------------+-----------+----------+
"""


def test_a_read_is_told_from_a_write() -> None:
    (path,) = read_paths((WRITE + READ + WRITE).splitlines())
    assert path.text == "cma/memory (zero-copy)"
    assert path.transports == ("cma/memory",)
    assert not path.is_tcp


def test_the_older_form_is_read_too_and_the_largest_reads_count() -> None:
    (path,) = read_paths(OLD_READ.splitlines())
    assert path.transports == ("cuda_ipc/cuda", "rc_mlx5/mlx5_0:1")
    assert not path.is_tcp


def test_a_way_through_the_network_stack_is_seen() -> None:
    (path,) = read_paths(READ.replace("cma/memory", "tcp/lo").splitlines())
    assert path.is_tcp


def test_the_same_table_twice_is_one_way() -> None:
    assert len(read_paths((READ + READ).splitlines())) == 1


def test_a_log_without_tables_has_no_ways() -> None:
    assert read_paths(["| 0..inf | zero-copy | cma/memory |", "anything"]) == []


def test_errors_are_found_once_each() -> None:
    line = "[17.68] [vm:9500 :0] ucp_context.c:1770 UCX  ERROR no usable transports"
    assert errors_in([line, line, WRITE]) == ["no usable transports"]
