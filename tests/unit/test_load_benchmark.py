"""The benchmark of loading, small: its clocks, the files that it writes, and one run of it all."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import load
from benchmarks.file_reading import drop_from_cache, is_any_cached, read_seconds, touch_seconds
from benchmarks.loading import PARTS
from benchmarks.model_formats import FORMATS, write_format
from benchmarks.process_memory import anonymous_bytes, peak_resident_bytes
from benchmarks.stopwatch import Stopwatch
from pdray.engine.checkpoint import open_checkpoint


def test_a_stopwatch_adds_up_calls_and_changes_nothing_else() -> None:
    module = ModuleType("loader")
    module.half = lambda number, *, of=2: number / of  # type: ignore[attr-defined]
    stopwatch = Stopwatch(PARTS)
    stopwatch.watch("config", module, "half")
    assert module.half(6) == 3
    first_s = stopwatch.seconds["config"]
    assert module.half(6, of=3) == 2
    with pytest.raises(ZeroDivisionError):
        module.half(1, of=0)
    assert stopwatch.seconds["config"] > first_s > 0
    assert set(stopwatch.seconds) == set(PARTS)
    with pytest.raises(AttributeError):
        stopwatch.watch("probe", module, "double")


def test_a_file_leaves_the_page_cache_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 << 20))
    if not drop_from_cache([path]):
        pytest.skip("this file system cannot say what it caches")
    assert read_seconds([path]) > 0
    with path.open("rb") as file:
        assert is_any_cached(file.fileno())
    assert drop_from_cache([path])


def test_memory_that_is_held_is_counted() -> None:
    num_bytes = 64 << 20
    before = anonymous_bytes()
    # Not from the heap, which may have as much of an earlier test's.
    with mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE) as held:
        held.write(b"x" * num_bytes)
        assert anonymous_bytes() - before > 0.9 * num_bytes
    assert peak_resident_bytes() > num_bytes
    assert touch_seconds(num_bytes) > 0


@pytest.mark.parametrize("form", [form for form in FORMATS if form.stored], ids=lambda f: f.name)
def test_formats_are_what_they_are_called(
    form: load.Format, tiny_model_path: Path, tmp_path: Path
) -> None:
    path = write_format(form, tiny_model_path, tmp_path / "written")
    assert path is not None
    checkpoint = open_checkpoint(path)
    assert checkpoint.plain_dtype() == form.stored
    assert (len(checkpoint.weight_files) > 1) == form.is_sharded
    plain = open_checkpoint(tiny_model_path)
    assert checkpoint.num_bytes_as("float32") == plain.num_bytes_as("float32")


@pytest.mark.slow
def test_a_run_measures_every_part(tiny_model_path: Path, tmp_path: Path) -> None:
    formats = ["float32 in shards", "bfloat16 to float32"]
    arguments = ["--model", str(tiny_model_path), "--formats", *formats, "--repeats", "1"]
    assert load.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("load-*.json")
    findings = json.loads(path.read_text())["findings"]
    assert [found["form"] for found in findings if not found["is_cold"]] == formats
    for found in findings:
        loading = found["loading"]
        assert sum(loading["part_s"].values()) <= loading["total_s"]
        # What a CPU has no kernels for is left as it is, and takes no time.
        assert all(loading["part_s"][part] > 0 for part in PARTS if part != "fusion")
        assert found["read_s"] > 0
        kept_bytes = loading["anonymous_bytes_after"] - loading["anonymous_bytes_before"]
        assert found["peak_anonymous_bytes"] >= kept_bytes > 0
        assert loading["peak_resident_bytes"] > loading["anonymous_bytes_after"]
    sharded, halved = (next(f for f in findings if f["form"] == form) for form in formats)
    assert sharded["file_bytes"] == pytest.approx(2 * halved["file_bytes"], rel=0.05)


def test_a_loading_that_fails_ends_the_benchmark_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        load.load_in_a_process(tmp_path, "float32", 1)
