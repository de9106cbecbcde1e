"""A model's tokenizer: text and chats to tokens, and back.

The only file besides the engine's that knows transformers; everything goes through the
tokenizer's Rust backend, which threads may share.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from pdray.core.errors import InvalidRequestError, UnsupportedModelError
from pdray.frontend.chat_template import ChatTemplate
from pdray.frontend.detokenizer import DetokenizerFactory, IncrementalDetokenizer
from pdray.frontend.response_parser import ResponseTemplateParser
from pdray.frontend.tool_calls import AnswerParser, ToolCallParser
from pdray.frontend.tool_syntax import ToolSyntax
from pdray.gguf_parsing import parsed_once

logger = logging.getLogger(__name__)

LONG_TEXT_CHARS = 4096
"""Texts from here on are encoded in a thread: they would hold up every stream's tokens."""


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
        self._template = ChatTemplate(self._tokenizer)
        if self._template.is_plain:
            logger.warning("%s has no chat template: chats use pdray's plain one", path)

    async def encode(self, text: str) -> list[int]:
        """The text's tokens, with the special ones that the model wants around a text."""
        return await self._encode(text, add_special_tokens=True)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] = (),
    ) -> str:
        """A chat as text, up to where the answer begins. Tools are in OpenAI's shape.

        Raises InvalidRequestError where the model's template refuses the messages.
        """
        return self._template.render(messages, tools)

    async def encode_chat(self, text: str) -> list[int]:
        """The tokens of a rendered chat."""
        # A template of the model's own spells the special tokens out.
        return await self._encode(text, add_special_tokens=self._template.is_plain)

    async def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Both, for a chat without tools."""
        return await self.encode_chat(self.render_chat(messages))

    @property
    def has_response_template(self) -> bool:
        return getattr(self._tokenizer, "response_template", None) is not None

    @property
    def tool_syntax(self) -> ToolSyntax | None:
        """How the model writes tool calls as JSON; None where it does not, or we cannot tell."""
        return self._template.tool_syntax

    def token_of(self, text: str) -> int | None:
        """The one token that the text is, if it is one."""
        return self._backend.token_to_id(text)

    def answer_parsers(
        self, prompt: str, tools: Sequence[Mapping[str, object]]
    ) -> Callable[[], AnswerParser]:
        """Makes parsers of answers to a rendered chat with these tools.

        Raises InvalidRequestError where the model's calls cannot be read.
        """
        if self.has_response_template:
            definitions: list[Any] = [dict(tool) for tool in tools]
            return lambda: ResponseTemplateParser(
                self._tokenizer.get_response_parser(prefix=prompt, tools=definitions)
            )
        syntax = self.tool_syntax
        if syntax is None:
            raise InvalidRequestError(
                "tools: this model's chat template writes tool calls in a way that is not known "
                "here, and its tokenizer has no response template; accepted: no tools",
                param="tools",
            )
        names = [name_of(tool) for tool in tools]
        return lambda: ToolCallParser(syntax, names)

    def with_special_tokens(self) -> Tokenizer:
        """The same tokenizer, whose texts show special tokens by their names: a response
        template's marks are such tokens."""
        shown = copy.copy(self)
        shown._detokenizers = DetokenizerFactory(self._backend, shows_special=True)
        return shown

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


def name_of(tool: Mapping[str, object]) -> str:
    function = tool["function"]
    assert isinstance(function, Mapping)
    return str(function["name"])
