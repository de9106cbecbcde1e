from __future__ import annotations

import pytest

from pdray.control.fleet import Fleet
from pdray.core.snapshot import Role
from pdray.policy.admission import Admission, decide, max_in_flight, retry_after_s
from tests.fleet_factories import make_info


def test_a_mixed_worker_counts_in_both_roles() -> None:
    fleet = Fleet()
    fleet.add(make_info("p", Role.PREFILL, max_batch_size=2), 0.0)
    fleet.add(make_info("m", Role.MIXED, max_batch_size=5), 0.0)
    assert max_in_flight(fleet) == 2 + 5 + 5


@pytest.mark.parametrize(
    ("num_in_flight", "num_queued", "expected"),
    [
        (3, 0, Admission.ADMIT),
        (4, 0, Admission.QUEUE),
        (3, 1, Admission.QUEUE),
        (4, 2, Admission.REJECT),
        (0, 2, Admission.REJECT),
    ],
)
def test_the_queue_is_never_passed_and_never_over_its_bound(
    num_in_flight: int, num_queued: int, expected: Admission
) -> None:
    admission = decide(
        is_next=num_queued == 0,
        num_in_flight=num_in_flight,
        max_in_flight=4,
        num_queued=num_queued,
        max_queued=2,
    )
    assert admission is expected


def test_one_that_is_more_urgent_than_all_who_wait_passes_them() -> None:
    for num_in_flight, expected in ((3, Admission.ADMIT), (4, Admission.QUEUE)):
        admission = decide(
            is_next=True,
            num_in_flight=num_in_flight,
            max_in_flight=4,
            num_queued=1,
            max_queued=2,
        )
        assert admission is expected


@pytest.mark.parametrize(
    ("num_queued", "finished_per_s", "expected"),
    [(10, 2.0, 5.0), (1, 100.0, 1.0), (1000, 1.0, 60.0), (3, 0.0, 60.0)],
)
def test_retry_after_follows_the_queue_and_the_rate_within_its_bounds(
    num_queued: int, finished_per_s: float, expected: float
) -> None:
    assert retry_after_s(num_queued=num_queued, finished_per_s=finished_per_s) == expected
