"""The turns of a chat, as clients send them and as templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import model_validator

from pdray.core.errors import InvalidRequestError
from pdray.serve.body import Body, LenientBody
from pdray.serve.request_checks import shown


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(LenientBody):
    name: str
    arguments: str

    def as_template_takes_it(self) -> dict[str, object]:
        """Templates write arguments as JSON themselves; what is none stays text."""
        try:
            arguments = json.loads(self.arguments)
        except ValueError:
            arguments = self.arguments
        return {"name": self.name, "arguments": arguments}


class ToolCall(LenientBody):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(LenientBody):
    """One turn. Clients send back what they got, so an answer's empty fields are taken."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(
                f"a message of {self.role} without content; accepted: a string or parts of type "
                "text, or an assistant's with tool_calls"
            )
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls of {self.role}; accepted: the assistant's")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of tool without tool_call_id; accepted: with it")
        return self

    def as_template_takes_it(self, tool_names: Mapping[str, str]) -> dict[str, object]:
        """``tool_names`` by call id: some templates want a result's function named."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        turn: dict[str, object] = {"role": role, "content": content}
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": call.function.as_template_takes_it(),
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
            if self.tool_call_id in tool_names:
                turn["name"] = tool_names[self.tool_call_id]
        return turn


def turns_of(messages: list[ChatMessage]) -> list[dict[str, object]]:
    names = {
        call.id: call.function.name for message in messages for call in message.tool_calls or ()
    }
    return [message.as_template_takes_it(names) for message in messages]


def refuse_unsupported_turns(messages: object) -> None:
    """Says of images and the like that they are not supported, rather than malformed."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, Mapping):
            continue
        where = f"messages[{index}]"
        if message.get("role") == "function":
            raise unsupported(f"{where}.role", message["role"])
        for name in ("function_call", "audio", "prefix"):
            if message.get(name):
                raise unsupported(f"{where}.{name}", message[name])
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping) and part.get("type", "text") != "text":
                raise unsupported(f"{where}.content[{number}].type", part["type"])


def unsupported(where: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where} = {shown(value)} is not supported in this version; accepted: text content of "
        "the roles system, developer, user, assistant and tool",
        param="messages",
        code="unsupported_parameter",
    )
