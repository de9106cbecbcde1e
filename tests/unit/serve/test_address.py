"""Where the API listens: its URL, and whether the port is free."""

from __future__ import annotations

import socket

import pytest

from pdray.config import PdrayConfig, parse_config
from pdray.core.errors import ConfigError
from pdray.serve.address import check_port_is_free, url_of


def config_with(**serve: object) -> PdrayConfig:
    engine = {"kv_cache_bytes": "1MiB"}
    pool = {"role": "mixed", "node_groups": ["a"], "engine": engine}
    return parse_config(
        {"model": "demo", "node_groups": {"a": {}}, "pools": {"all": pool}, "serve": serve}
    )


@pytest.mark.parametrize(
    ("host", "prefix", "url"),
    [
        ("127.0.0.1", "/", "http://127.0.0.1:8000"),
        ("0.0.0.0", "/", "http://127.0.0.1:8000"),
        ("::", "/", "http://[::1]:8000"),
        ("::1", "/", "http://[::1]:8000"),
        ("10.0.0.7", "/llm/", "http://10.0.0.7:8000/llm"),
    ],
)
def test_the_url_can_be_dialled_from_this_machine(host: str, prefix: str, url: str) -> None:
    config = config_with(host=host, route_prefix=prefix, keys_file="keys.yaml")
    assert url_of(config) == url


def test_a_port_in_use_is_refused_and_a_free_one_is_not() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"serve\.port = {port}: .*--port"):
            check_port_is_free("127.0.0.1", port)
    check_port_is_free("127.0.0.1", port)


def test_a_listener_that_shares_its_port_is_found_too() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            check_port_is_free("127.0.0.1", listener.getsockname()[1])


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        check_port_is_free("192.0.2.1", 8000)
