"""Real reads through NIXL, in processes of their own."""

from __future__ import annotations

import pytest

from pdray.doctor.finding import Level
from pdray.doctor.transport import check_transport, device_pairs
from tests.unit.doctor.conftest import MakePlan


@pytest.mark.slow
def test_what_ucx_uses_between_two_workers_is_tried(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UCX_TLS", raising=False)
    (finding,) = check_transport(make_plan())
    assert finding.level in {Level.OK, Level.WARNING}  # some containers forbid cma
    assert "on this machine UCX reads through " in finding.found
    assert "does not say" not in finding.found
    assert "64 MiB came at" in finding.found


@pytest.mark.slow
def test_tcp_between_processes_of_one_machine_is_a_warning(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A transport that some test made in this process has left its own setting behind.
    monkeypatch.delenv("UCX_RCACHE_MAX_UNRELEASED", raising=False)
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    (finding,) = check_transport(make_plan())
    assert finding.level is Level.WARNING
    assert "tcp/lo" in finding.found
    assert "the environment has UCX_TLS=tcp,self" in finding.found
    assert "take UCX_TLS out of the environment" in str(finding.remedy)


@pytest.mark.slow
def test_nixl_that_cannot_run_is_an_error_with_ucxs_reason(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "bogus")
    (finding,) = check_transport(make_plan())
    assert finding.level is Level.ERROR
    assert "asked bogus" in finding.found
    assert "UCX_TLS" in str(finding.remedy)


def test_loopback_does_not_reach_another_process(make_plan: MakePlan) -> None:
    (finding,) = check_transport(make_plan(transfer={"transport": "loopback"}))
    assert finding.level is Level.ERROR
    assert finding.remedy == "transfer.transport: nixl"


def test_reads_go_from_prefill_to_decode_workers_once_for_each_kind_of_memory(
    make_plan: MakePlan,
) -> None:
    engine = {"kv_cache_bytes": "1MiB"}
    gpu = {"node_groups": ["gpu"], "engine": engine | {"device": "cuda"}}
    cpu = {"node_groups": ["a"], "engine": engine}
    groups = {"a": {}, "gpu": {"resources_per_worker": {"GPU": 1}}}
    pools = {"p": gpu | {"role": "prefill"}, "d": cpu | {"role": "decode"}}
    assert device_pairs(make_plan(pools=pools, node_groups=groups).pools) == [("cuda", "cpu")]
    pools = {"p": gpu | {"role": "mixed"}, "d": cpu | {"role": "mixed"}}
    assert len(device_pairs(make_plan(pools=pools, node_groups=groups).pools)) == 4
    assert device_pairs(make_plan().pools) == [("cpu", "cpu")]
