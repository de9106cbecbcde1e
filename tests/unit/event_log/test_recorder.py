"""The log of a control plane: each of its files replays, and together they stay small."""

from __future__ import annotations

import logging
import random
import shutil
import time
from pathlib import Path

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.errors import EventLogError
from pdray.core.prefix_report import KVTier, NameChanges, PrefixReport
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.event_log.recorder import Recorder
from pdray.event_log.replay import replay
from pdray.event_log.segments import read_segment, segments
from pdray.policy.placement import PLACEMENT
from pdray.policy.roles import RoleBounds
from tests.fleet_factories import SLO, make_ask, make_info, make_policy, make_snapshot

MAX_BYTES = 400_000


def make_control(policy: str) -> ControlPlane:
    bounds = RoleBounds(min_workers=1, max_workers=3)
    config = ControlConfig(
        max_queued_requests=8,
        queue_timeout_s=5.0,
        role_bounds={Role.PREFILL: bounds, Role.DECODE: bounds},
        slo=SLO,
    )
    return ControlPlane(config, make_policy(policy))


def record(
    control: ControlPlane, folder: Path, life: str = "1", max_bytes: int = MAX_BYTES
) -> Recorder:
    return Recorder(
        control, folder, "app", life=life, max_bytes=max_bytes, unix_time=lambda: 1_000_000.0
    )


def live(control: ControlPlane, num_requests: int) -> None:
    """Some workers, and conversations that overload them now and then."""
    rng = random.Random(1)
    roles = {"p": Role.PREFILL, "q": Role.PREFILL, "d": Role.DECODE, "e": Role.DECODE}
    for name, role in roles.items():
        control.worker_joined(make_info(name, role), 0.0)
    now, open_ids = 0.0, []
    for index in range(num_requests):
        now += rng.expovariate(5.0)
        names = tuple(rng.randbytes(8) for _ in range(3))
        ask = make_ask(f"r{index}", prefix_names=names, session_id=f"s{index % 7}")
        control.place("f", [ask], now)
        open_ids.append(ask.request_id)
        if rng.random() < 0.9:
            control.finished("f", [open_ids.pop(rng.randrange(len(open_ids)))], now)
        worker_id = rng.choice(sorted(roles))
        control.snapshot(make_snapshot(worker_id, prefill_backlog_tokens=index % 3000), now)
        if index == 0:
            changes = NameChanges(tier=KVTier.DEVICE, added=b"".join(names), removed=b"")
            control.prefixes_told(WorkerId("p"), PrefixReport(number=0, changes=(changes,)), now)
        control.tick(now)
        control.take_decisions()


@pytest.mark.parametrize("policy", PLACEMENT.names())
def test_every_file_replays_to_the_same_decisions(policy: str, tmp_path: Path) -> None:
    control = make_control(policy)
    recorder = record(control, tmp_path)
    live(control, 500)
    recorder.close()
    paths = segments(tmp_path)
    assert len(paths) > 3
    for path in paths:
        replayed = replay(path)
        assert replayed.num_events > 50 or path == paths[-1]
        assert replayed.differences == ()


def test_a_changed_decision_is_found(tmp_path: Path) -> None:
    control = make_control("cost")
    recorder = record(control, tmp_path)
    live(control, 20)
    recorder.close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"prefill":"p"', b'"prefill":"q"', 1))
    (difference,) = replay(path).differences
    assert b'"prefill":"q"' in difference.logged
    assert b'"prefill":"p"' in difference.replayed


def test_the_oldest_files_go_and_those_of_another_application_stay(tmp_path: Path) -> None:
    (tmp_path / "app-two.1.000000.events").write_bytes(b"not ours")
    for life in ("1", "2"):
        control = make_control("cost")
        recorder = record(control, tmp_path, life)
        live(control, 1000)
        recorder.close()
        assert sum(path.stat().st_size for path in segments(tmp_path, "app")) <= MAX_BYTES
    assert {path.name.split(".")[1] for path in segments(tmp_path, "app")} == {"2"}
    assert len(segments(tmp_path)) == len(segments(tmp_path, "app")) + 1


def test_keys_of_links_are_not_written(tmp_path: Path) -> None:
    control = make_control("cost")
    control.worker_joined(make_info("early", Role.MIXED), 0.0)
    recorder = record(control, tmp_path)
    control.worker_joined(make_info("late", Role.MIXED), 0.0)
    control.place("f", [make_ask()], 0.0)
    recorder.close()
    for path in segments(tmp_path):
        _, *lines = path.read_bytes().splitlines()
        assert lines
        assert not any(b"a2V5" in line or b'"key"' in line for line in lines)  # b"key" in base 64
    restored, _ = read_segment(path)
    assert restored.fleet.get(WorkerId("early")).info.address.link_key == b""
    assert control.fleet.get(WorkerId("early")).info.address.link_key == b"key"


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    control = make_control("cost")
    recorder = record(control, tmp_path)
    live(control, 5)
    recorder.close()
    (path,) = segments(tmp_path)
    whole = replay(path).num_events
    path.write_bytes(path.read_bytes()[:-10])
    assert replay(path).num_events == whole - 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello\n", "is no event log"),
        (b'{"kind":"checkpoint","pdray":"0.0","opened_at":1,"checkpoint":""}\n', "by pdray 0.0"),
    ],
)
def test_what_is_no_log_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "app.1.000000.events"
    path.write_bytes(content)
    with pytest.raises(EventLogError, match=words):
        replay(path)


def test_a_log_too_small_for_what_is_known_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = make_control("cost")
    with caplog.at_level(logging.ERROR):
        recorder = record(control, tmp_path, max_bytes=4096)
        live(control, 5)
        recorder.close()
    assert "more than half of max_bytes" in caplog.text
    assert segments(tmp_path) == []


def test_a_log_that_cannot_be_written_ends_and_the_control_plane_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    control = make_control("cost")
    with caplog.at_level(logging.ERROR):
        recorder = record(control, folder, max_bytes=40_000)
        while not list(folder.iterdir()):
            time.sleep(0.001)
        shutil.rmtree(folder)
        live(control, 50)
        recorder.close()
    assert "the event log in" in caplog.text
    assert control.num_in_flight > 0
    control.check_integrity()
