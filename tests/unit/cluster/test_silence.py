from __future__ import annotations

import pytest

from pdray.cluster.silence import Silence


def test_silence_is_the_time_since_something_was_heard() -> None:
    silence = Silence(0.0)
    assert [silence.look(now) for now in (0.5, 1.0, 1.5)] == pytest.approx([0.5, 1.0, 1.5])
    silence.end(2.0)
    assert silence.look(2.5) == pytest.approx(0.5)


def test_time_in_which_we_did_not_run_is_nobodys_silence() -> None:
    silence = Silence(0.0)
    assert silence.look(1000.0) == pytest.approx(1.0)
    assert silence.look(1000.5) == pytest.approx(1.5)
