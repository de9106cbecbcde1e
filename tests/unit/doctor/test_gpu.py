from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pdray.doctor.finding import Level
from pdray.doctor.gpu import check_gpus, direct_finding, num_finding, peer_findings
from tests.unit.doctor.conftest import MakePlan

GPU_GROUP = {"a": {"resources_per_worker": {"GPU": 1}}}


def test_a_config_for_the_cpu_alone_needs_no_gpu(make_plan: MakePlan) -> None:
    (finding,) = check_gpus(make_plan())
    assert finding.level is Level.OK


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_without_a_gpu_is_an_error_of_each_pool(make_plan: MakePlan) -> None:
    engine = {"device": "cuda", "kv_cache_bytes": "1GiB"}
    findings = list(check_gpus(make_plan(engine=engine, node_groups=GPU_GROUP)))
    assert [finding.level for finding in findings] == [Level.ERROR, Level.ERROR]
    assert findings[1].subject == "pools.decode.engine.device"
    assert "cuda (on node group a), but no GPU is here" in findings[1].found
    assert "pools.decode.engine.device: cpu" in str(findings[1].remedy)


def test_more_gpus_than_there_are_is_an_error(make_plan: MakePlan) -> None:
    engine = {"device": "cuda", "kv_cache_bytes": "1GiB"}
    pools = make_plan(engine=engine, node_groups=GPU_GROUP).pools
    assert num_finding(pools, 2).level is Level.OK
    finding = num_finding((replace(pools[0], num_workers=8), pools[1]), 8)
    assert finding.level is Level.ERROR
    assert finding.found == "8 here, 9 asked for"
    assert "pools.prefill.replicas, pools.decode.replicas" in str(finding.remedy)


def test_gpus_that_do_not_reach_each_other_are_named() -> None:
    assert list(peer_findings(1, lambda reader, owner: False)) == []
    (finding,) = peer_findings(3, lambda reader, owner: True)
    assert finding.level is Level.OK
    (finding,) = peer_findings(3, lambda reader, owner: (reader, owner) != (0, 2))
    assert finding.level is Level.WARNING
    assert "GPU 0 to 2:" in finding.found


def test_a_nic_reaches_a_gpu_by_a_kernel_module(tmp_path: Path) -> None:
    finding = direct_finding(tmp_path)
    assert finding.level is Level.WARNING
    assert finding.remedy == "modprobe nvidia_peermem"
    (tmp_path / "gdrdrv").mkdir()
    assert direct_finding(tmp_path).level is Level.OK
