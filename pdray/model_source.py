"""Finds the folder of a model: the demo model, a local folder, or a name on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from pdray.config import DEMO_MODEL, cache_dir
from pdray.core.errors import ConfigError
from pdray.demo_model import prepare_demo_model

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NOT_NEEDED = ["*.bin.index.json", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pth", "original/*"]


def resolve_model(name: str, progress: Callable[[str], None]) -> Path:
    """The folder with the model's config, weights and tokenizer, made or downloaded if need be.

    ``progress`` gets a line before each long step. Raises ConfigError where there is no such
    model, with what to do about it.
    """
    if name == DEMO_MODEL:
        return prepare_demo_model(cache_dir() / "models", progress)
    path = Path(name).expanduser()
    if path.is_dir():
        check_model_folder(path)
        return path.resolve()
    if path.exists() or not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"model = {name!r}: is no folder; accepted: {DEMO_MODEL}, the path of a Hugging Face "
            "model folder, or a hub name such as Qwen/Qwen3-0.6B"
        )
    return _download(name, progress)


def check_model_folder(folder: Path) -> None:
    """Raises ConfigError unless the folder has a readable config.json and all its weights."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model = {str(folder)!r}: the folder has no config.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model = {str(folder)!r}: config.json is no good: {error}") from error
    if missing := _missing_weights(folder):
        raise ConfigError(f"model = {str(folder)!r}: the folder has no {missing}")


def _missing_weights(folder: Path) -> str | None:
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in files if not (folder / name).is_file())
        return f"{', '.join(missing)}, which {index.name} names" if missing else None
    if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
        return None
    return "weights (*.safetensors)"


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
    check_model_folder(folder)
    return folder
