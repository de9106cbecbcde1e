"""Who goes on with decodes that have to leave their worker."""

from __future__ import annotations

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.placement import MoveAsk, WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.policy.placement.least_loaded import LeastLoaded
from tests.fleet_factories import make_ask, make_info, make_snapshot

SOURCE = WorkerId("d0")


def control_with(**others: object) -> ControlPlane:
    """d0 is left by its decodes; d1 and d2 may take them, and ``others`` of d1 differ."""
    config = ControlConfig(max_queued_requests=8, queue_timeout_s=60.0)
    control = ControlPlane(config, LeastLoaded())
    control.worker_joined(make_info("p", Role.PREFILL), 0.0)
    control.worker_joined(make_info(SOURCE, Role.DECODE), 0.0)
    control.worker_joined(make_info("d1", Role.DECODE, **others), 0.0)  # type: ignore[arg-type]
    control.worker_joined(make_info("d2", Role.DECODE), 0.0)
    return control


def ask(request_id: str = "r", *refused: str, max_total_tokens: int = 110) -> MoveAsk:
    return MoveAsk(
        request_id=request_id,
        source_id=SOURCE,
        max_total_tokens=max_total_tokens,
        refused=tuple(map(WorkerId, refused)),
    )


def ids(targets: list[WorkerAddress | None]) -> list[str | None]:
    return [None if target is None else target.worker_id for target in targets]


def test_they_spread_over_the_others_and_count_there() -> None:
    control = control_with()
    names = [f"r{i}" for i in range(4)]
    placed = control.place("f", [make_ask(name) for name in names], 0.0)
    control.worker_draining(SOURCE, 0.0)
    booked = {w: n.num_requests for w, n in control.fleet.decoding().items()}
    targets = ids(control.move("f", [ask(name) for name in names], 1.0))
    assert set(targets) == {"d1", "d2"}
    control.check_integrity()
    after = {w: n.num_requests for w, n in control.fleet.decoding().items()}
    assert sum(after.values()) == sum(booked.values()) == len(placed)
    assert SOURCE not in after
    control.finished("f", names, 2.0)
    assert control.fleet.decoding() == {}


def test_one_that_has_refused_is_not_named_again() -> None:
    control = control_with()
    targets = control.move("f", [ask("a", "d1"), ask("b", "d2"), ask("c", "d1", "d2")], 0.0)
    assert ids(targets) == ["d2", "d1", None]


@pytest.mark.parametrize(
    "unlike",
    [{"layout_digest": "another"}, {"dtype": "bfloat16"}, {"max_sequence_tokens": 100}],
)
def test_one_that_could_not_go_on_alike_or_to_the_end_is_not_named(
    unlike: dict[str, object],
) -> None:
    control = control_with(**unlike)
    assert ids(control.move("f", [ask("a"), ask("b", "d2")], 0.0)) == ["d2", None]


def test_one_that_drains_or_cannot_be_reached_is_not_named() -> None:
    control = control_with()
    control.worker_draining(WorkerId("d1"), 0.0)
    control.pair_met(SOURCE, WorkerId("d2"), "no route", 0.0)
    assert ids(control.move("f", [ask()], 0.0)) == [None]


def test_another_generations_decode_goes_to_one_of_the_same_kind() -> None:
    control = control_with()
    control.snapshot(make_snapshot("d1", num_held_blocks=50), 0.0)
    source = make_info("old", Role.DECODE)
    target = control.find_target(source, ask())
    assert target is not None
    assert target.worker_id in (SOURCE, "d2")
    assert control.find_target(make_info("old", Role.DECODE, dtype="bfloat16"), ask()) is None
    assert control.find_target(None, ask()) is not None, "it decodes on ours"
