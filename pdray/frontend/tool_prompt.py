"""Tools in plain words, for chat templates that know of none: described in the system turn,
calls in the model's turns, results in the user's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pdray.frontend.tool_syntax import TAGGED, Message

INTRODUCTION = (
    "You can call these functions, given as JSON, one a line:\n{tools}\n"
    "To call one, write its name and its arguments like this, and nothing after it:\n"
    f'{TAGGED.begin}\n{{{{"name": "the_name", "arguments": {{{{}}}}}}}}\n{TAGGED.end}'
)


def in_plain_turns(
    messages: Sequence[Message], tools: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """The same chat of system, user and assistant turns that hold text alone."""
    turns: list[dict[str, object]] = []
    for message in messages:
        if message["role"] == "tool":
            _add_result(turns, str(message["content"]))
        else:
            turns.append({"role": message["role"], "content": _text_of(message)})
    if not tools:
        return turns
    lines = (json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = INTRODUCTION.format(tools="\n".join(lines))
    if turns and turns[0]["role"] == "system":
        turns[0]["content"] = f"{turns[0]['content']}\n\n{text}"
        return turns
    return [{"role": "system", "content": text}, *turns]


def without_system_turn(turns: Sequence[Message]) -> list[Message]:
    """Its text at the head of the first user turn, for templates that take no system turn."""
    first, *others = turns
    if first["role"] != "system":
        return list(turns)
    if not others or others[0]["role"] != "user":
        return [{"role": "user", "content": first["content"]}, *others]
    text = f"{first['content']}\n\n{others[0]['content']}"
    return [{"role": "user", "content": text}, *others[1:]]


def _add_result(turns: list[dict[str, object]], content: str) -> None:
    """Results of several calls are one turn: many templates want turns to alternate."""
    result = f"<tool_response>\n{content}\n</tool_response>"
    if turns and str(turns[-1]["content"]).endswith("</tool_response>"):
        turns[-1]["content"] = f"{turns[-1]['content']}\n{result}"
    else:
        turns.append({"role": "user", "content": result})


def _text_of(message: Message) -> str:
    parts = [str(message["content"])] if message["content"] else []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = {key: call["function"][key] for key in ("name", "arguments")}
        text = json.dumps(function, ensure_ascii=False)
        parts.append(f"{TAGGED.begin}\n{text}\n{TAGGED.end}")
    return "\n".join(parts)
