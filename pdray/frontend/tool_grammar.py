"""A grammar of tool calls, written as the model writes them, with arguments by their schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pdray.core.grammar import Grammar, GrammarKind
from pdray.frontend.tool_syntax import ToolSyntax
from pdray.grammar import JSON_WHITESPACE

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_grammar(
    syntax: ToolSyntax,
    schemas: Mapping[str, Mapping[str, object]],
    *,
    is_single: bool,
    answer_schema: Mapping[str, object] | None,
    token_of: Callable[[str], int | None],
) -> Grammar:
    """Calls of the named tools, whose arguments follow ``schemas``: one or more, one alone where
    ``is_single`` or the syntax has no marks; or an answer by ``answer_schema`` instead."""
    begin, end = _mark(syntax.begin, token_of), _mark(syntax.end, token_of)
    names = [f"call_{index}" for index in range(len(schemas))]
    calls = f"call ({_quoted(chr(10))} call)*" if syntax.begin and not is_single else "call"
    rules = [
        f"start: calls{' | answer' if answer_schema is not None else ''}",
        f"calls: {calls}",
        f"call: {' | '.join(names)}",
    ]
    newline = "\n" if syntax.begin else ""
    for index, (name, schema) in enumerate(schemas.items()):
        head = f'{newline}{{"name": {json.dumps(name)}, "{syntax.arguments_key}": '
        tail = "}" + newline
        rules.append(
            f"call_{index}: {begin} {_quoted(head)} arguments_{index} {_quoted(tail)} {end}"
        )
        rules.append(f"arguments_{index}: {_json_rule(schema)}")
    if answer_schema is not None:
        rules.append(f"answer: {_json_rule(answer_schema)}")
    return Grammar(kind=GrammarKind.LARK, text="\n".join(rules))


def argument_schema(parameters: Mapping[str, object] | None) -> Mapping[str, object]:
    """What a function's arguments are held to: without parameters it takes none."""
    return NO_ARGUMENTS if parameters is None else {"type": "object", **parameters}


def _json_rule(schema: Mapping[str, object]) -> str:
    options = {"whitespace_pattern": JSON_WHITESPACE}
    return f"%json {json.dumps({'x-guidance': options, **schema})}"


def _mark(text: str, token_of: Callable[[str], int | None]) -> str:
    """As the one token that many vocabularies have for it, or as text."""
    if not text:
        return ""
    token_id = token_of(text)
    return _quoted(text) if token_id is None else f"(<[{token_id}]> | {_quoted(text)})"


def _quoted(text: str) -> str:
    return json.dumps(text)
