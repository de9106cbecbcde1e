"""Least loaded without looking at all workers: the choice of one who does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pdray.control.fleet import Fleet
from pdray.core.mode import Mode
from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerView
from pdray.policy.placement.base import MAX_DECODE_CANDIDATES, PlacementChoice, pairings
from pdray.policy.placement.least_loaded import LeastLoaded
from tests.fleet_factories import make_ask, make_info, make_snapshot

ROLES = (Role.PREFILL, Role.DECODE, Role.MIXED)
ASK = make_ask(num_prompt_tokens=100, max_tokens=50)
WORKERS = st.lists(
    st.tuples(
        st.sampled_from(ROLES),
        st.sampled_from("ab"),
        st.sampled_from([90, 120, 200]),
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(
    workers=WORKERS,
    phases=st.sampled_from(ROLES),
    mode=st.sampled_from(list(Mode)),
    failed=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
)
def test_it_is_the_best_of_all_pairs(
    workers: list[tuple[Role, str, int, int, int, int]],
    phases: Role,
    mode: Mode,
    failed: set[tuple[int, int]],
) -> None:
    fleet = Fleet(phases, mode)
    for number, (role, layout, size, backlog, held, decoding) in enumerate(workers):
        name = f"w{number}"
        info = make_info(name, role, layout_digest=layout, max_sequence_tokens=size)
        fleet.add(info, 0.0)
        told = make_snapshot(name, prefill_backlog_tokens=100 * backlog, num_held_blocks=25 * held)
        fleet.update(told, 0.0)
        fleet.book_decode(WorkerId(name), decoding, 100 * decoding)
    for one, other in failed:
        fleet.pair_met(WorkerId(f"w{one}"), WorkerId(f"w{other}"), "no way")
    assert LeastLoaded().place(fleet, ASK) == best_of_all(fleet, ASK)


def best_of_all(fleet: Fleet, ask: PlacementAsk) -> PlacementChoice | None:
    pairs = pairings(fleet, ask)
    if not pairs:
        return None
    best = min(pairs, key=lambda pair: prefill_load(pair.prefill))
    decodes = sorted(best.decodes, key=fullness)[:MAX_DECODE_CANDIDATES]
    return PlacementChoice(
        prefill_id=best.prefill_id,
        decode_ids=tuple(worker.info.worker_id for worker in decodes),
        together=best.together,
    )


def prefill_load(worker: WorkerView | None) -> tuple[float, ...]:
    return () if worker is None else (worker.prefill_backlog_tokens, *fullness(worker))


def fullness(worker: WorkerView) -> tuple[float, int]:
    batch_utilization = worker.num_decoding / worker.info.max_batch_size
    return max(batch_utilization, worker.kv_utilization), worker.num_decoding
