"""Latencies against definitions written out the long way."""

from __future__ import annotations

import math
import random

import pytest

from pdray.core.slo import Slo
from pdray.metrics.latency import Distribution, RequestRecord, summarize


def make_record(
    *times: float, arrival_at: float = 0.0, is_complete: bool = True, num_prompt_tokens: int = 10
) -> RequestRecord:
    return RequestRecord(
        arrival_at=arrival_at,
        token_times=times,
        num_prompt_tokens=num_prompt_tokens,
        is_complete=is_complete,
    )


def brute_force_percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below, above = math.floor(position), math.ceil(position)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def random_run(rng: random.Random) -> list[RequestRecord]:
    records = []
    for _ in range(rng.randint(1, 60)):
        arrival_at = rng.uniform(0, 50)
        times, now = [], arrival_at
        for _ in range(rng.randint(1, 40)):
            now += rng.choice([0.0, rng.expovariate(20)])
            times.append(now)
        records.append(
            make_record(
                *times,
                arrival_at=arrival_at,
                is_complete=rng.random() < 0.8,
                num_prompt_tokens=rng.randint(1, 900),
            )
        )
    return records


def check_distribution(found: Distribution | None, values: list[float]) -> None:
    if not values:
        assert found is None
        return
    assert found is not None
    assert found.count == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.p50 == pytest.approx(brute_force_percentile(values, 0.5))
    assert found.p90 == pytest.approx(brute_force_percentile(values, 0.9))
    assert found.p99 == pytest.approx(brute_force_percentile(values, 0.99))
    assert found.p999 == pytest.approx(brute_force_percentile(values, 0.999))
    assert found.max == max(values)


@pytest.mark.parametrize("seed", range(20))
def test_a_summary_equals_the_definitions_written_out(seed: int) -> None:
    records = random_run(random.Random(seed))
    slo = Slo(ttft_s=0.08, itl_s=0.12, percentile=0.9)
    summary = summarize(records, slo)

    ttfts, tpots, itls, e2es = [], [], [], []
    num_good = num_complete = num_prompt = num_output = 0
    for record in records:
        times = record.token_times
        num_output += len(times)
        if not record.is_complete:
            continue
        num_complete += 1
        num_prompt += record.num_prompt_tokens
        gaps = [times[i] - times[i - 1] for i in range(1, len(times))]
        ttfts.append(times[0] - record.arrival_at)
        e2es.append(times[-1] - record.arrival_at)
        itls.extend(gaps)
        if gaps:
            tpots.append((times[-1] - times[0]) / len(gaps))
        late = [gap for gap in gaps if gap > 0.12]
        num_good += ttfts[-1] <= 0.08 and 10 * (len(gaps) - len(late)) >= 9 * len(gaps)
    duration_s = max(r.token_times[-1] for r in records) - min(r.arrival_at for r in records)

    check_distribution(summary.ttft_s, ttfts)
    check_distribution(summary.tpot_s, tpots)
    check_distribution(summary.itl_s, itls)
    check_distribution(summary.e2e_s, e2es)
    assert summary.duration_s == pytest.approx(duration_s)
    assert summary.num_complete == num_complete
    assert summary.completed_rps == pytest.approx(num_complete / duration_s)
    assert summary.prompt_tokens_per_s == pytest.approx(num_prompt / duration_s)
    assert summary.output_tokens_per_s == pytest.approx(num_output / duration_s)
    assert summary.goodput_rps == pytest.approx(num_good / duration_s)
    assert summary.slo_attainment == pytest.approx(num_good / len(records))


def test_a_request_of_one_token_has_no_tpot_and_no_gaps() -> None:
    record = make_record(3.0, arrival_at=1.0)
    assert (record.ttft_s, record.e2e_s) == (2.0, 2.0)
    assert record.tpot_s is None
    assert record.itls_s == ()
    assert record.meets(Slo(ttft_s=2.0, itl_s=0.1, percentile=0.99))


def test_tokens_that_came_together_have_gaps_of_zero() -> None:
    record = make_record(1.0, 1.0, 1.0, 2.0)
    assert record.itls_s == (0.0, 0.0, 1.0)
    assert record.tpot_s == pytest.approx(1 / 3)


def test_a_late_first_token_misses_the_slo() -> None:
    assert not make_record(2.5).meets(Slo(ttft_s=2.0, itl_s=1.0, percentile=0.5))


def test_the_percentile_says_how_many_gaps_may_be_late() -> None:
    record = make_record(0.0, 0.1, 0.2, 0.3, 1.3)
    assert record.meets(Slo(ttft_s=1.0, itl_s=0.2, percentile=0.75))
    assert not record.meets(Slo(ttft_s=1.0, itl_s=0.2, percentile=0.8))


def test_a_failed_request_counts_against_attainment_but_not_in_latencies() -> None:
    failed = make_record(9.0, is_complete=False)
    summary = summarize([make_record(1.0), failed], Slo(ttft_s=10.0, itl_s=1.0, percentile=0.9))
    assert summary.slo_attainment == 0.5
    assert summary.ttft_s is not None
    assert summary.ttft_s.count == 1


def test_refused_requests_have_no_latencies_at_all() -> None:
    summary = summarize([make_record(is_complete=False)], None)
    assert (summary.ttft_s, summary.itl_s, summary.e2e_s) == (None, None, None)
    assert (summary.completed_rps, summary.slo_attainment) == (0.0, None)


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(ValueError, match="without requests"):
        summarize([], None)
