"""Whether the API can listen where it should."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pdray.doctor.finding import Finding, error, ok
from pdray.doctor.local_plan import LocalPlan
from pdray.serve.address import why_not_free


def check_ports(plan: LocalPlan) -> Iterator[Finding]:
    host, port = plan.config.serve.host, plan.config.serve.port
    try:
        problem = why_not_free(host, port)
    except socket.gaierror as gone:
        yield error(
            "serve.host",
            f"{host!r} is no address of this machine: {gone.strerror}",
            "set serve.host to 127.0.0.1, 0.0.0.0 or an address that `ip address` shows",
        )
        return
    if problem is None:
        yield ok("serve.port", f"{host}:{port} is free")
    else:
        yield error(
            "serve.port",
            f"cannot listen on {host}:{port}: {problem}",
            f"end what listens there (`ss -ltnp 'sport = :{port}'` shows it), or set serve.host "
            "and serve.port to what is this machine's and free",
        )
