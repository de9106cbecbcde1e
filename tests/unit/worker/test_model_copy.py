from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pdray.core.model_source import HIDDEN_S, ModelSource, is_peer_faster
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.engine.attention.routing import serving
from pdray.engine.fusion.fuse import PlainAttention
from pdray.engine.model import LoadedModel, load_model
from pdray.worker import model_copy
from pdray.worker.memory_files import MemoryFiles, write_all
from tests.file_owner_process import FileOwnerProcess

WEIGHTS = "model.safetensors"
PROMPT_T = torch.arange(3, 40)


@pytest.fixture
def model(tiny_model_path: Path, tmp_path: Path) -> Path:
    """A copy of its own, with a file of several chunks beside the weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    (folder / "notes.txt").write_bytes(os.urandom(30_000_001))
    return folder


@pytest.fixture
def start_owner() -> Iterator[Callable[[Path], FileOwnerProcess]]:
    owners: list[FileOwnerProcess] = []

    def start(path: Path) -> FileOwnerProcess:
        owners.append(FileOwnerProcess(path))
        return owners[-1]

    yield start
    for owner in owners:
        owner.close()


async def copy(source: ModelSource, own: Path | None, *peers: WorkerAddress) -> MemoryFiles | None:
    return await model_copy.copy_model(source, own, peers, reader_id="reader", transport="nixl")


async def test_a_model_out_of_a_peer_gives_the_logits_of_the_one_on_disk_to_the_bit(
    model: Path, start_owner: Callable[[Path], FileOwnerProcess]
) -> None:
    owner = start_owner(model)
    files = await copy(ModelSource.PEER, None, owner.address)
    assert files is not None
    for path in model.iterdir():
        assert (files.model_path / path.name).read_bytes() == path.read_bytes(), path.name
    expected = logits_of(load_model(model, dtype="float32", device="cpu"))
    copied = load_model(files.model_path, dtype="float32", device="cpu")
    files.release_weights()
    assert torch.equal(logits_of(copied), expected)
    files.close()


@pytest.mark.parametrize("own", [None, "the disk's"])
async def test_where_the_peer_dies_in_the_middle_the_next_one_lends_it_or_the_disk_is_read(
    own: str | None,
    model: Path,
    start_owner: Callable[[Path], FileOwnerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doomed, other = start_owner(model), start_owner(model)
    num_written = 0

    def write_and_kill(descriptor: int, offset: int, data: memoryview) -> None:
        nonlocal num_written
        num_written += 1
        if num_written == 6:  # of the second file or the third
            doomed.kill()
        write_all(descriptor, offset, data)

    monkeypatch.setattr(model_copy, "write_all", write_and_kill)
    path = None if own is None else model
    assert await copy(ModelSource.PEER, path, doomed.address) is None
    files = await copy(ModelSource.PEER, path, doomed.address, other.address)
    assert files is not None
    notes = model / "notes.txt"
    assert (files.model_path / notes.name).read_bytes() == notes.read_bytes()
    files.close()


async def test_another_model_is_not_taken(
    model: Path, tmp_path: Path, start_owner: Callable[[Path], FileOwnerProcess]
) -> None:
    """Of the same shapes, and of others."""
    tuned = tmp_path / "tuned"
    shutil.copytree(model, tuned)
    weights = bytearray((tuned / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tuned / WEIGHTS).write_bytes(weights)
    assert await copy(ModelSource.PEER, tuned, start_owner(model).address) is None
    config = (model / "config.json").read_text()
    (tuned / "config.json").write_text(config.replace("silu", "gelu"))
    shutil.copy(model / WEIGHTS, tuned / WEIGHTS)
    assert await copy(ModelSource.PEER, tuned, start_owner(model).address) is None


async def test_files_that_changed_since_they_were_loaded_are_not_lent(
    model: Path, start_owner: Callable[[Path], FileOwnerProcess]
) -> None:
    owner = start_owner(model)
    with (model / WEIGHTS).open("r+b") as file:
        file.write(file.read(1))
    os.utime(model / WEIGHTS, ns=(0, 0))
    assert await copy(ModelSource.PEER, None, owner.address) is None


async def test_what_the_page_cache_has_is_read_from_the_disk(model: Path) -> None:
    (model / WEIGHTS).read_bytes()
    nobody = WorkerAddress(worker_id=WorkerId("nobody"), host="127.0.0.1", port=1, link_key=b"")
    assert await copy(ModelSource.AUTO, model, nobody) is None


def test_a_peer_is_of_use_where_it_is_faster_and_the_imports_do_not_hide_the_disk() -> None:
    def is_faster(disk_s: float, peer_s: float) -> bool:
        return is_peer_faster(10**9, disk_bytes_per_s=1e9 / disk_s, peer_bytes_per_s=1e9 / peer_s)

    assert not is_faster(disk_s=HIDDEN_S, peer_s=1.0)
    assert is_faster(disk_s=HIDDEN_S + 1, peer_s=1.0)
    assert is_faster(disk_s=100.0, peer_s=99.0)
    assert not is_faster(disk_s=100.0, peer_s=101.0)


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    positions_T = torch.arange(len(PROMPT_T))
    with torch.inference_mode(), serving(PlainAttention()):
        return loaded.logits(PROMPT_T, positions_T, positions_T).clone()
