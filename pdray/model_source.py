"""Finds a model: the demo model, a local folder or GGUF file, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pdray.config import DEMO_MODEL, cache_dir
from pdray.core.errors import ConfigError
from pdray.demo_model import prepare_demo_model
from pdray.engine.checkpoint import open_checkpoint

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NOT_NEEDED = ["*.bin.index.json", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pth", "original/*"]


def resolve_model(name: str, progress: Callable[[str], None]) -> Path:
    """The folder with the model's config, weights and tokenizer, made or downloaded if need be,
    or the GGUF file with all of them.

    ``progress`` gets a line before each long step. Raises ConfigError where there is no such
    model, or not all of it, with what to do about it.
    """
    if name == DEMO_MODEL:
        return prepare_demo_model(cache_dir() / "models", progress)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return open_checkpoint(path.resolve()).path
    if path.exists() or not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"model = {name!r}: is no folder; accepted: {DEMO_MODEL}, the path of a Hugging Face "
            "model folder or of a .gguf file, or a hub name such as Qwen/Qwen3-0.6B"
        )
    return _download(name, progress)


def _download(name: str, progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    progress(f"getting {name} from the Hugging Face hub, or from its local cache")
    try:
        folder = Path(snapshot_download(name, ignore_patterns=_NOT_NEEDED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model = {name!r}: is no local folder, and the hub did not give it: {reason}"
        ) from error
    return open_checkpoint(folder).path
