"""The benchmark of the tiers, small: every prompt comes back from where it should, and one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tiers
from benchmarks.prefix_bookkeeping import load_engine
from benchmarks.tiers import KINDS, Answer, Bench, crossing_of, rate_of, tiers_of
from tests.tiny_model import NUM_TOKENS


def test_each_kind_is_of_the_tier_that_it_names(tiny_model_path: Path, tmp_path: Path) -> None:
    engine = load_engine(tiny_model_path, "float32", 1, 128)
    with tiers_of(engine, str(tmp_path)) as store:
        bench = Bench(engine, store, tmp_path, NUM_TOKENS)
        answers = [*bench.measure(100, 0), *bench.measure(50, 1)]
    assert [each.kind for each in answers] == [*KINDS, *KINDS]
    for each in answers:
        num_cached = 0 if each.kind == "computed" else each.num_tokens // 16 * 16
        assert each.num_cached_tokens == num_cached
        assert (each.num_bytes > 0) == (each.kind in KINDS[2:])
        assert each.seconds >= each.promotion_s > 0
    engine.pool.check_integrity()


def answers_of(*seconds: tuple[int, float, float]) -> list[Answer]:
    """Of (length, computed, host)."""
    return [
        Answer(
            num_tokens=length,
            kind=kind,
            seconds=each,
            promotion_s=each / 2,
            num_cached_tokens=0,
            num_bytes=0,
        )
        for length, computed_s, host_s in seconds
        for kind, each in (("computed", computed_s), ("host", host_s))
    ]


def test_the_crossing_point_is_where_bringing_back_begins_to_pay() -> None:
    assert "between 32 and 64" in crossing_of(answers_of((32, 1, 2), (64, 4, 3)), "host")
    assert "at 32 tokens already" in crossing_of(answers_of((32, 2, 1), (64, 4, 3)), "host")
    assert "at no length" in crossing_of(answers_of((32, 1, 2), (64, 2, 3)), "host")
    assert rate_of(answers_of((32, 1, 2), (64, 4, 4)), "host") == 32


def test_a_run_prints_its_machine_and_writes_its_answers(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(tiny_model_path), "--prompt-tokens", "40", "--repeats", "1"]
    folders = ["--folder", str(tmp_path), "--output-dir", str(tmp_path / "results")]
    assert tiers.main([*arguments, *folders]) == 0
    assert "from host: faster than computing" in " ".join(capsys.readouterr().out.split())
    (path,) = (tmp_path / "results").glob("tiers-*.json")
    content = json.loads(path.read_text())
    assert [each["kind"] for each in content["answers"]] == list(KINDS)
    assert content["machine"]["cpu"]


def test_a_prompt_without_a_whole_block_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tiers.parse_args(["--prompt-tokens", "16"])
    assert "--prompt-tokens 16: more than 16" in capsys.readouterr().err
