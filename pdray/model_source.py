"""Finds a model: the demo model, a local folder or GGUF file, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pdray.config import DEMO_MODEL, cache_dir
from pdray.core.errors import ConfigError
from pdray.demo_model import FOLDER_NAME, is_whole, prepare_demo_model
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
    return _local_model(name) or _download(name, progress)


def find_model(name: str) -> Path | None:
    """Where the model is now; None where ``resolve_model`` would make it or get it from the hub.
    Raises ConfigError for what is neither, and for a folder or file that is not whole."""
    if name == DEMO_MODEL:
        folder = cache_dir() / "models" / FOLDER_NAME
        return folder if is_whole(folder) else None
    return _local_model(name) or _cached(name)


def missing_bytes(name: str) -> int:
    """Of a hub name: how much ``resolve_model`` would download. Raises ConfigError where the hub
    cannot be asked, or does not give it."""
    from huggingface_hub import snapshot_download

    with _hub_errors(name):
        files = snapshot_download(name, ignore_patterns=_NOT_NEEDED, dry_run=True)
    return sum(file.file_size or 0 for file in files if file.will_download)


def _local_model(name: str) -> Path | None:
    """None for a hub name. Raises ConfigError."""
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return open_checkpoint(path.resolve()).path
    if path.exists() or not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"model = {name!r}: is no folder; accepted: {DEMO_MODEL}, the path of a Hugging Face "
            "model folder or of a .gguf file, or a hub name such as Qwen/Qwen3-0.6B"
        )
    return None


def _cached(name: str) -> Path | None:
    """In the hub's local cache; None where it is not there, or not all of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, ignore_patterns=_NOT_NEEDED, local_files_only=True)
        return open_checkpoint(Path(folder)).path
    except (LocalEntryNotFoundError, ConfigError):
        return None


def _download(name: str, progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download

    progress(f"getting {name} from the Hugging Face hub, or from its local cache")
    with _hub_errors(name):
        folder = Path(snapshot_download(name, ignore_patterns=_NOT_NEEDED))
    return open_checkpoint(folder).path


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model = {name!r}: is no local folder, and the hub did not give it: {reason}"
        ) from error
