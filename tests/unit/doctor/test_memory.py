from __future__ import annotations

from dataclasses import replace

from pdray.doctor.finding import Level
from pdray.doctor.memory import check_memory, gpu_finding, host_finding, need_of
from pdray.doctor.visible_gpus import GpuMemory
from pdray.engine.checkpoint import open_checkpoint
from tests.unit.doctor.conftest import MakePlan

GIB = 2**30


def test_what_fits_is_ok_and_adds_up_all_workers(make_plan: MakePlan) -> None:
    (finding,) = check_memory(make_plan(engine={"kv_cache_bytes": "64MiB"}))
    assert finding.level is Level.OK
    assert finding.found.count("KV 64 MiB") == 2


def test_kv_memory_larger_than_the_machine_is_an_error_with_what_is_too_much(
    make_plan: MakePlan,
) -> None:
    (finding,) = check_memory(make_plan(engine={"kv_cache_bytes": "1024TiB"}))
    assert finding.level is Level.ERROR
    assert "KV 1048576 GiB" in finding.found
    assert "pools.prefill.engine, pools.decode.engine" in str(finding.remedy)
    assert "GiB in all" in str(finding.remedy)


def test_fractions_of_memory_that_are_more_than_all_of_it_are_an_error(make_plan: MakePlan) -> None:
    (finding,) = check_memory(make_plan(engine={"kv_memory_fraction": 0.6}))
    assert finding.level is Level.ERROR
    (finding,) = check_memory(make_plan(engine={"kv_memory_fraction": 0.01}))
    assert finding.level is Level.OK


def test_a_fraction_that_does_not_hold_the_weights_is_an_error_of_each_pool(
    make_plan: MakePlan,
) -> None:
    findings = list(check_memory(make_plan(engine={"kv_memory_fraction": 1e-9})))
    assert [finding.subject for finding in findings] == [
        "pools.prefill.engine",
        "pools.decode.engine",
    ]
    assert "no memory is left for KV" in findings[0].found
    assert "raise kv_memory_fraction" in str(findings[0].remedy)


def test_kv_is_counted_where_the_model_is_not_here_yet(make_plan: MakePlan) -> None:
    for engine in ({"kv_cache_bytes": "64MiB"}, {"kv_memory_fraction": 0.01}):
        (finding,) = check_memory(make_plan(engine=engine, model="no-one/no-model"))
        assert finding.level is Level.OK
        assert "weights not known yet" in finding.found


def test_a_worker_needs_its_weights_its_ranks_kv_and_its_host_tier(make_plan: MakePlan) -> None:
    plan = make_plan(
        engine={"kv_cache_bytes": "1MiB", "tensor_parallel": 2, "dtype": "float32"},
    )
    need = need_of(plan, plan.pools[0])
    assert plan.model_path is not None
    assert need.weights_bytes == open_checkpoint(plan.model_path).num_bytes_as("float32")
    assert need.kv_bytes == 2 * 2**20
    tiered = make_plan(tiers={"host_bytes": "8MiB"})
    plain = make_plan()
    assert (
        need_of(tiered, tiered.pools[0]).host_bytes - need_of(plain, plain.pools[0]).host_bytes
        == 8 * 2**20
    )


def test_memory_that_others_use_now_is_a_warning(make_plan: MakePlan) -> None:
    plan = make_plan(engine={"kv_cache_bytes": "4GiB"})
    needs = [need_of(plan, pool) for pool in plan.pools]
    levels = [
        host_finding(needs, total=total * GIB, free=free * GIB).level
        for total, free in ((32, 30), (32, 8), (8, 8))
    ]
    assert levels == [Level.OK, Level.WARNING, Level.ERROR]


def test_a_gpu_is_judged_by_what_one_rank_puts_on_it(make_plan: MakePlan) -> None:
    plan = make_plan()
    need = replace(need_of(plan, plan.pools[0]), weights_bytes=0, kv_bytes=60 * GIB)
    gpus = [GpuMemory(total_bytes=80 * GIB, free_bytes=70 * GIB)] * 2
    assert gpu_finding(need, gpus).level is Level.OK
    assert gpu_finding(need, [replace(gpus[0], free_bytes=50 * GIB)]).level is Level.WARNING
    finding = gpu_finding(replace(need, kv_bytes=90 * GIB), gpus)
    assert finding.level is Level.ERROR
    assert "by 10 GiB a GPU" in str(finding.remedy)
    halves = replace(need.pool, num_workers=2, num_gpus=0.5)
    assert gpu_finding(replace(need, pool=halves), gpus).level is Level.ERROR


def test_pools_whose_gpu_is_not_here_are_left_to_the_check_of_gpus(make_plan: MakePlan) -> None:
    plan = make_plan(
        engine={"device": "cuda:99", "kv_cache_bytes": "1024TiB"},
        node_groups={"a": {"resources_per_worker": {"GPU": 1}}},
    )
    assert list(check_memory(plan)) == []
