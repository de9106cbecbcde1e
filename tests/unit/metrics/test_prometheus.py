"""The metric sets, read back with Prometheus' own parser."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from pdray.core.request import WorkerId
from pdray.core.snapshot import TierSnapshot, WorkerSnapshot, WorkerState
from pdray.metrics.exposition import merge_expositions
from pdray.metrics.prometheus import FrontendMetrics, Outcome, WorkerMetrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_request_is_in_flight_until_it_ends() -> None:
    metrics = FrontendMetrics("r0")
    metrics.request_started(7)
    metrics.request_started(5)
    metrics.request_ended(Outcome.CANCELLED)
    samples = parse(metrics.text())
    assert value(samples, "pdray_num_requests_in_flight", replica="r0") == 1
    assert value(samples, "pdray_prompt_tokens_total", replica="r0") == 12
    assert value(samples, "pdray_requests_total", replica="r0", outcome="cancelled") == 1
    assert value(samples, "pdray_requests_total", replica="r0", outcome="stop") == 0


def test_every_output_token_is_counted_and_has_a_gap_but_the_first() -> None:
    metrics = FrontendMetrics("r0")
    metrics.request_started(4)
    metrics.observe_first_token(0.4)
    metrics.token_interval(0.03)
    metrics.token_interval(0.06, 3)
    metrics.request_ended(Outcome.LENGTH, e2e_s=0.49, tpot_s=0.0225)
    samples = parse(metrics.text())
    assert value(samples, "pdray_generation_tokens_total", replica="r0") == 5
    itl = "pdray_inter_token_latency_seconds"
    assert value(samples, f"{itl}_count", replica="r0") == 4
    assert value(samples, f"{itl}_bucket", replica="r0", le="0.001") == 2
    assert value(samples, f"{itl}_bucket", replica="r0", le="0.03") == 3
    assert value(samples, f"{itl}_bucket", replica="r0", le="0.06") == 4
    assert value(samples, "pdray_time_to_first_token_seconds_sum", replica="r0") == 0.4
    assert value(samples, "pdray_e2e_request_latency_seconds_sum", replica="r0") == 0.49
    assert value(samples, "pdray_time_per_output_token_seconds_sum", replica="r0") == 0.0225


def test_a_request_that_ended_badly_has_no_latency() -> None:
    metrics = FrontendMetrics("r0")
    metrics.request_started(4)
    metrics.request_ended(Outcome.FAILED)
    samples = parse(metrics.text())
    assert value(samples, "pdray_e2e_request_latency_seconds_count", replica="r0") == 0


def snapshot(**changes: int) -> WorkerSnapshot:
    known = WorkerSnapshot(
        worker_id=WorkerId("w1"),
        state=WorkerState.READY,
        taken_at=1.0,
        num_waiting=2,
        num_running=3,
        prefill_backlog_tokens=0,
        num_blocks=100,
        num_free_blocks=50,
        num_cached_blocks=15,
        num_held_blocks=30,
        num_quarantined_blocks=5,
        num_unaccounted_blocks=2,
        prefix_query_tokens=0,
        prefix_hit_tokens=0,
        num_evicted_blocks=0,
        step_time=None,
        reads=(),
        bytes_read=(),
    )
    return replace(known, **changes)


def test_a_snapshot_sets_every_gauge_and_the_block_states_add_up() -> None:
    metrics = WorkerMetrics("w1", "decode")
    metrics.set_snapshot(snapshot())
    samples = parse(metrics.text())
    states = {
        state: value(samples, "pdray_kv_blocks", worker_id="w1", pool="decode", state=state)
        for state in ("free", "cached", "held", "quarantined")
    }
    assert states == {"free": 50, "cached": 15, "held": 30, "quarantined": 5}
    assert value(samples, "pdray_kv_unaccounted_blocks", worker_id="w1", pool="decode") == 2
    assert value(samples, "pdray_kv_utilization", worker_id="w1", pool="decode") == 0.35
    assert value(samples, "pdray_num_requests_running", worker_id="w1", pool="decode") == 3
    assert value(samples, "pdray_num_requests_waiting", worker_id="w1", pool="decode") == 2


def test_the_prefix_caches_counts_are_the_newest_snapshots() -> None:
    metrics = WorkerMetrics("w1", "prefill")
    for turn in (1, 2, 2, 5):
        counts = {"prefix_query_tokens": 100, "prefix_hit_tokens": 64, "num_evicted_blocks": 3}
        metrics.set_snapshot(snapshot(**{name: turn * each for name, each in counts.items()}))
        samples = parse(metrics.text())
        labels = {"worker_id": "w1", "pool": "prefill"}
        assert value(samples, "pdray_prefix_cache_queries_total", **labels) == turn * 100
        assert value(samples, "pdray_prefix_cache_hits_total", **labels) == turn * 64
        assert value(samples, "pdray_prefix_cache_evicted_blocks_total", **labels) == turn * 3


def test_only_hidden_reads_count_as_hidden() -> None:
    metrics = WorkerMetrics("w1", "decode")
    for is_hidden, num_blocks in ((True, 3), (False, 1)):
        metrics.transfer_finished(
            0.002,
            queued_s=0.0,
            transport="nixl",
            source_pool="prefill",
            num_blocks=num_blocks,
            num_bytes=1000 * num_blocks,
            is_hidden=is_hidden,
        )
    labels = {
        "worker_id": "w1",
        "transport": "nixl",
        "source_pool": "prefill",
        "target_pool": "decode",
    }
    samples = parse(metrics.text())
    assert value(samples, "pdray_kv_transfer_bytes_total", **labels) == 4000
    assert value(samples, "pdray_kv_transfer_hidden_bytes_total", **labels) == 3000
    assert value(samples, "pdray_kv_transfer_blocks_total", **labels) == 4
    assert value(samples, "pdray_kv_transfer_seconds_count", **labels) == 2


def test_a_step_is_timed_under_what_was_in_it() -> None:
    metrics = WorkerMetrics("w1", "decode")
    metrics.step_finished(0.5, num_prefill_tokens=512, num_decode_tokens=0)
    metrics.step_finished(0.04, num_prefill_tokens=0, num_decode_tokens=8)
    metrics.step_finished(0.2, num_prefill_tokens=100, num_decode_tokens=4)
    metrics.preempted(2)
    metrics.handoff_finished(0.003)
    samples = parse(metrics.text())
    labels = {"worker_id": "w1", "pool": "decode"}
    for phase, seconds in (("prefill", 0.5), ("decode", 0.04), ("mixed", 0.2)):
        assert value(samples, "pdray_engine_step_seconds_sum", phase=phase, **labels) == seconds
    assert value(samples, "pdray_engine_tokens_total", phase="prefill", **labels) == 612
    assert value(samples, "pdray_engine_tokens_total", phase="decode", **labels) == 12
    assert value(samples, "pdray_num_preemptions_total", **labels) == 2
    assert value(samples, "pdray_handoff_seconds_count", **labels) == 1


def test_merged_expositions_hold_every_sample_and_each_header_once() -> None:
    first, second, worker = FrontendMetrics("r0"), FrontendMetrics("r1"), WorkerMetrics("w", "p")
    first.request_started(3)
    second.request_started(4)
    texts = [first.text(), second.text(), worker.text()]
    merged = merge_expositions(texts)
    assert parse(merged) == {**parse(texts[0]), **parse(texts[1]), **parse(texts[2])}
    headers = [line for line in merged.decode().split("\n") if line.startswith("#")]
    assert len(headers) == len(set(headers))
    families = list(text_string_to_metric_families(merged.decode()))
    assert len(families) == len({family.name for family in families})


def test_a_label_value_with_a_line_separator_survives_merging() -> None:
    text = FrontendMetrics("a\u2028b\nc").text()
    assert parse(merge_expositions([text])) == parse(text)


def test_no_created_samples_are_shown() -> None:
    assert b"_created" not in FrontendMetrics("r0").text()
    assert b"_created" not in WorkerMetrics("w", "p").text()


def test_tiers_are_shown_where_there_are_some() -> None:
    metrics = WorkerMetrics("w", "pool")
    assert b"pdray_kv_tier_blocks{" not in metrics.text()
    host = TierSnapshot(
        tier="host", num_blocks=3, num_bytes=30, num_demoted=7, num_promoted=4, num_failed=1
    )
    metrics.tiers.set([host])
    metrics.tiers.set([replace(host, num_demoted=9)])
    metrics.tiers.promoted(4, 0.002)
    samples = parse(metrics.text())
    labels = {"worker_id": "w", "pool": "pool", "tier": "host"}
    for name, number in (
        ("pdray_kv_tier_blocks", 3),
        ("pdray_kv_tier_bytes", 30),
        ("pdray_kv_tier_demoted_blocks_total", 9),
        ("pdray_kv_tier_hit_blocks_total", 4),
        ("pdray_kv_tier_failed_blocks_total", 1),
    ):
        assert value(samples, name, **labels) == number
    assert value(samples, "pdray_kv_promoted_blocks_total", worker_id="w", pool="pool") == 4
    assert value(samples, "pdray_kv_promotion_seconds_sum", worker_id="w", pool="pool") == 0.002
