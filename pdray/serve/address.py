"""Where the API listens. Imports neither Ray nor Serve."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pdray.config import PdrayConfig
from pdray.core.errors import ConfigError

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def url_of(config: PdrayConfig) -> str:
    """Where the API can be reached from this machine; no slash at the end."""
    host = _ANY_HOST.get(config.serve.host, config.serve.host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{config.serve.port}{config.serve.route_prefix.rstrip('/')}"


def check_side_by_side(configs: Sequence[PdrayConfig]) -> None:
    """Raises ConfigError for applications that cannot be on one Ray Serve."""
    for key in ("application", "route_prefix"):
        values = [getattr(config.serve, key) for config in configs]
        if len(set(values)) < len(values):
            raise ConfigError(f"serve.{key} = {values}: accepted: another one in each config")
    for key in ("host", "port"):
        values = [getattr(config.serve, key) for config in configs]
        if len(set(values)) > 1:
            raise ConfigError(f"serve.{key} = {values}: accepted: the same one in all configs")


def check_port_is_free(host: str, port: int) -> None:
    """Raises ConfigError where another process listens. Serve itself would not notice: it shares
    ports, and answers would come from either."""
    try:
        problem = why_not_free(host, port)
    except socket.gaierror as error:
        raise ConfigError(
            f"serve.host = {host!r}: is no address of this machine: {error}"
        ) from None
    if problem is not None:
        raise ConfigError(
            f"serve.port = {port}: cannot listen on {host}:{port}: {problem}; "
            "accepted: a free port (--port, or PORT= with make)"
        )


def why_not_free(host: str, port: int) -> str | None:
    """The system's reason why nobody can listen there now; None where one can. Raises
    socket.gaierror for a host that has no address."""
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(address[0], address[1]) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address[4])
        except OSError as error:
            return error.strerror or str(error)
    return None
