"""What /v1/prefill and its like answer."""

from __future__ import annotations

from typing import Literal

from pdray.serve.openai_responses import Sent, Usage


class PrefilledChoice(Sent, frozen=True, kw_only=True):
    """``finish_reason`` is set where the first token was the last one, too."""

    index: int
    token_ids: list[int]
    text: str
    finish_reason: str | None


class Prefilled(Sent, frozen=True, kw_only=True):
    """``expires_at`` is in seconds since 1970."""

    id: str
    object: Literal["prefill"] = "prefill"
    created: int
    model: str
    kv_handle: str
    expires_at: float
    choices: tuple[PrefilledChoice, ...]
    usage: Usage


class Renewed(Sent, frozen=True, kw_only=True):
    """The handle before it stays good until its own ``expires_at``."""

    object: Literal["prefill.renewed"] = "prefill.renewed"
    kv_handle: str
    expires_at: float


class Released(Sent, frozen=True, kw_only=True):
    object: Literal["prefill.released"] = "prefill.released"
