"""A control plane as bytes: all of it comes back, and nothing else can."""

from __future__ import annotations

import os
import pickle

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.errors import EventLogError
from pdray.core.snapshot import Role
from pdray.event_log.checkpoint import dump, restore
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot


def make_control() -> ControlPlane:
    control = ControlPlane(
        ControlConfig(max_queued_requests=8, queue_timeout_s=5.0), make_policy("power_of_two")
    )
    for name in ("m", "n", "o"):
        control.worker_joined(make_info(name, Role.MIXED), 0.0)
        control.snapshot(make_snapshot(name), 0.0)
    return control


def test_one_that_comes_back_decides_as_the_other_does() -> None:
    control = make_control()
    control.place("f", [make_ask(f"a{i}") for i in range(3)], 1.0)
    other = restore(dump(control))
    other.check_integrity()
    asks = [make_ask(f"b{i}") for i in range(20)]
    answers, others = control.place("f", asks, 2.0), other.place("f", asks, 2.0)
    assert [str(each) for each in answers] == [str(each) for each in others]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps(Evil()), "system has no place"),
        (pickle.dumps(pickle.loads), "loads has no place"),
        (b"\x80\x04cpdray.event_log.checkpoint\npickle\n.", "pickle has no place"),
        (b"\x80\x04cpdray.control.journal\ninspect\n.", "inspect has no place"),
        (b"\x80\x04cpdray.control.journal\nevent\n.", "event has no place"),
        (pickle.dumps([1, 2]), "no control plane's state but a list"),
        (dump(make_control())[:-20], "no state of a control plane"),
    ],
)
def test_what_is_no_control_plane_is_refused_before_it_does_anything(
    data: bytes, words: str
) -> None:
    with pytest.raises(EventLogError, match=words):
        restore(data)
