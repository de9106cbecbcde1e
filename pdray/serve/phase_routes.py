"""What an application of ``mode: service`` answers, by its phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter

from pdray.config import PdrayConfig
from pdray.core.cluster_secret import read_secrets
from pdray.core.mode import Mode
from pdray.core.snapshot import Role
from pdray.frontend.frontend import Frontend
from pdray.frontend.text import Tokenizer
from pdray.serve.completion import CompletionService
from pdray.serve.composition import Composition
from pdray.serve.decode_service import DecodeService
from pdray.serve.handle_routes import add_composed_routes, add_decode_routes, add_prefill_routes
from pdray.serve.prefill_client import PrefillClient
from pdray.serve.prefill_service import MAX_PREFILL_TOKENS, PrefillService


def max_output_tokens(config: PdrayConfig) -> int | None:
    """What each request is made for at most; None for all that its body asks for."""
    return MAX_PREFILL_TOKENS if config.phases is Role.PREFILL else None


def phase_routes(
    config: PdrayConfig, frontend: Frontend, completions: CompletionService, tokenizer: Tokenizer
) -> Callable[[APIRouter], None] | None:
    """None where the application has both phases. Raises ConfigError."""
    if config.mode is not Mode.SERVICE:
        return None
    assert config.handles.secret_file is not None, "mode service without a secret"
    secrets = read_secrets(Path(config.handles.secret_file))
    if config.phases is Role.PREFILL:
        prefill = PrefillService(completions, frontend, tokenizer, secrets)
        return lambda v1: add_prefill_routes(v1, prefill)
    decode = DecodeService(completions, frontend, secrets)
    url = config.serve.prefill_url

    def add_routes(v1: APIRouter) -> None:
        add_decode_routes(v1, decode)
        if url is not None:
            add_composed_routes(v1, Composition(decode, PrefillClient(url)))

    return add_routes
