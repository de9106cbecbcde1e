"""How a model writes a tool call, read off its chat template: the template shows a call that was
made as the model was taught to make it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSyntax:
    """A call is a JSON object with ``name`` and ``arguments_key``, between two marks; without
    marks it is the whole answer."""

    begin: str
    end: str
    arguments_key: str


TAGGED = ToolSyntax(begin="<tool_call>", end="</tool_call>", arguments_key="arguments")
"""Hermes', Qwen's and many others'; and of models whose template knows of no tools."""

Message = Mapping[str, object]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, object]], bool], str]
"""(messages, tools, whether the answer begins after them) to text. Raises TemplateError."""

_PROBE = "pdray_probe"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
_QUESTION = {"role": "user", "content": "Look."}
_CALL = re.compile(rf'\{{\s*"name"\s*:\s*"{_PROBE}"\s*,\s*"(arguments|parameters)"\s*:\s*\{{')


def knows_tools(render: Render) -> bool:
    try:
        return _PROBE in render([_QUESTION], [_PROBE_TOOL], True)
    except TemplateError:
        return False


def find_syntax(render: Render) -> ToolSyntax | None:
    """None where the template writes calls as no JSON that we know."""
    call = {
        "id": "probe0001",
        "type": "function",
        "function": {"name": _PROBE, "arguments": {"at": "it"}},
    }
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        question = render([_QUESTION], [_PROBE_TOOL], True).rstrip()
        text = render([_QUESTION, answer], [_PROBE_TOOL], False)
    except TemplateError:
        return None
    shown = list(_CALL.finditer(text))
    if not shown:
        return None
    before = text[: shown[-1].start()].rstrip()
    arguments_key = shown[-1][1]
    if before.endswith(TAGGED.begin) and TAGGED.end in text[shown[-1].end() :]:
        return ToolSyntax(begin=TAGGED.begin, end=TAGGED.end, arguments_key=arguments_key)
    if before == question:
        return ToolSyntax(begin="", end="", arguments_key=arguments_key)
    return None
