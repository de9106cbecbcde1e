from __future__ import annotations

import socket

from pdray.doctor.finding import Level
from pdray.doctor.ports import check_ports
from tests.unit.doctor.conftest import MakePlan


def test_a_port_that_another_process_has_is_an_error_until_it_is_free(make_plan: MakePlan) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        plan = make_plan(serve={"port": port})
        (finding,) = check_ports(plan)
        assert finding.level is Level.ERROR
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in finding.found
        assert f"sport = :{port}" in str(finding.remedy)
    (finding,) = check_ports(plan)
    assert finding.level is Level.OK


def test_a_host_that_is_not_this_machine_is_an_error(make_plan: MakePlan) -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        (finding,) = check_ports(make_plan(serve={"host": host, "allow_anonymous": True}))
        assert finding.level is Level.ERROR
        assert host in finding.found
        assert "serve.host" in str(finding.remedy)
