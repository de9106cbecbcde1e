"""A chat as the model's template writes it, with or without tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from pdray.core.errors import InvalidRequestError
from pdray.frontend.tool_prompt import in_plain_turns, without_system_turn
from pdray.frontend.tool_syntax import TAGGED, Message, ToolSyntax, find_syntax, knows_tools

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n"
    "{% endfor %}Assistant:"
)


class ChatTemplate:
    """Of a transformers tokenizer; pdray's plain one where that has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.is_plain = tokenizer.chat_template is None

    @cached_property
    def knows_tools(self) -> bool:
        return not self.is_plain and knows_tools(self._render)

    @cached_property
    def tool_syntax(self) -> ToolSyntax | None:
        """How calls are written; None where we cannot tell."""
        return find_syntax(self._render) if self.knows_tools else TAGGED

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> str:
        """Up to where the answer begins. Raises InvalidRequestError where the template refuses
        the messages."""
        try:
            return self._render_any(messages, tools)
        except TemplateError as error:
            raise InvalidRequestError(
                f"messages: the model's chat template does not take these: {error}",
                param="messages",
            ) from error

    def _render_any(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]
    ) -> str:
        has_tools = bool(tools) or any(
            message["role"] == "tool" or "tool_calls" in message for message in messages
        )
        if not has_tools or self.knows_tools:
            return self._render(messages, tools, True)
        turns = in_plain_turns(messages, tools)
        try:
            return self._render(turns, (), True)
        except TemplateError:
            return self._render(without_system_turn(turns), (), True)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]], is_open: bool
    ) -> str:
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=DEFAULT_CHAT_TEMPLATE if self.is_plain else None,
            add_generation_prompt=is_open,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text
