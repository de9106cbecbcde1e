from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pdray.serve.free_port import free_port


def test_a_server_can_listen_on_it_and_no_outgoing_connection_gets_it() -> None:
    low, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(20):
        port = free_port()
        assert 1024 < port < low
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        free = free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr("random.randrange", lambda *_: next(ports))
        assert free_port() == free
