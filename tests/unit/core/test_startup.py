from __future__ import annotations

from pdray.core.clock import ManualClock
from pdray.core.startup import StartupTimes, StartupWatch


def test_a_starts_parts_are_timed_one_after_another(manual_clock: ManualClock) -> None:
    watch = StartupWatch(manual_clock, process_s=2.0)
    for seconds, ended in (
        (5.0, watch.imported),
        (2.0, watch.loaded),
        (0.25, watch.warmed_up),
    ):
        manual_clock.advance(seconds)
        ended()
    manual_clock.advance(100.0)
    times = watch.times()
    assert times == StartupTimes(process_s=2.0, imports_s=5.0, weights_s=2.0, warmup_s=0.25)
    assert times.total_s == 9.25
    assert str(times) == "9.2 s (process 2.0, imports 5.0, weights 2.0, warmup 0.2, meeting 0.0)"
