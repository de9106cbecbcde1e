"""A model's tokenizer: text and chats to tokens, and back.

The only file besides the engine's that knows transformers; everything goes through the
tokenizer's Rust backend, which threads may share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from pdray.core.errors import InvalidRequestError, UnsupportedModelError
from pdray.frontend.detokenizer import DetokenizerFactory, IncrementalDetokenizer
from pdray.gguf_parsing import parsed_once

logger = logging.getLogger(__name__)

LONG_TEXT_CHARS = 4096
"""Texts from here on are encoded in a thread: they would hold up every stream's tokens."""

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n"
    "{% endfor %}Assistant:"
)


def _read(path: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Never runs code that the model brings."""
    source: dict[str, Any] = {"trust_remote_code": False}
    parsing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    folder = path
    if path.suffix == ".gguf":
        folder, source["gguf_file"] = path.parent, path.name
        parsing = parsed_once()
    try:
        with parsing:
            config = AutoConfig.from_pretrained(folder, **source)
            return AutoTokenizer.from_pretrained(folder, **source), config
    except (ImportError, OSError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise UnsupportedModelError(f"{path}: its tokenizer cannot be read: {reason}") from error


class Tokenizer:
    """Loaded once, used by every request of a process. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """``path`` is a model's folder, or a GGUF file. Raises UnsupportedModelError where there
        is no tokenizer, or one without a Rust backend."""
        self._tokenizer, config = _read(path)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, RustTokenizer):
            raise UnsupportedModelError(
                f"{path}: its tokenizer is a {type(self._tokenizer).__name__}, which has no "
                "fast version; a tokenizer.json in the folder would do"
            )
        self._backend = backend
        self.vocab_size: int = config.get_text_config().vocab_size
        """The model's: no token from here on has an embedding, though a tokenizer may have it."""
        self._detokenizers = DetokenizerFactory(self._backend)
        self._chat_template: str | None = None
        if self._tokenizer.chat_template is None:
            logger.warning("%s has no chat template: chats use pdray's plain one", path)
            self._chat_template = DEFAULT_CHAT_TEMPLATE

    async def encode(self, text: str) -> list[int]:
        """The text's tokens, with the special ones that the model wants around a text."""
        return await self._encode(text, add_special_tokens=True)

    async def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a chat (``role`` and ``content``) up to where the answer begins.

        Raises InvalidRequestError where the model's template refuses the messages.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:
            raise InvalidRequestError(
                f"messages: the model's chat template does not take these: {error}",
                param="messages",
            ) from error
        assert isinstance(text, str)
        # A template of the model's own spells the special tokens out.
        return await self._encode(text, add_special_tokens=self._chat_template is not None)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens, special ones left out."""
        return self._detokenizers.decode(list(token_ids))

    def spelling(self, token_id: int) -> bytes:
        """What one token stands for: its part of a text, or a special token's name. Not always
        whole characters."""
        return self._detokenizers.spelling(token_id)

    def detokenizer(self) -> IncrementalDetokenizer:
        return self._detokenizers.create()

    async def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        def encode() -> list[int]:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
            return ids

        if len(text) < LONG_TEXT_CHARS:
            return encode()
        return await asyncio.to_thread(encode)
