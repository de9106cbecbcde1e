"""Calls out of text: against a plain reading of the whole, whatever way the text was split."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_parsing import ResponseParser

from pdray.frontend.response_parser import ResponseTemplateParser
from pdray.frontend.tool_calls import AnswerParser, CallPiece, TextPiece, ToolCallParser
from pdray.frontend.tool_syntax import TAGGED, ToolSyntax

BARE = ToolSyntax(begin="", end="", arguments_key="parameters")
NAMES = ["look", "go"]

Parsed = tuple[str, list[tuple[str, str]]]


def parsed(parser: AnswerParser, pieces: list[str]) -> Parsed:
    """(content, [(name, arguments)]), with the pieces' order checked."""
    content, calls = "", []
    outputs = [each for piece in pieces for each in parser.push(piece)] + parser.flush()
    for output in outputs:
        if isinstance(output, TextPiece):
            assert output.text
            content += output.text
        elif output.name is not None:
            assert output.index == len(calls)
            calls.append((output.name, output.arguments))
        else:
            assert output.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + output.arguments)
    return content, calls


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)] or [""]


def call(name: str, arguments: object, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments})


def tagged(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=6), values, max_size=3)
words = st.text(alphabet='ab <tol_c>{}\n"', max_size=12)
fragments = st.one_of(
    words,
    st.sampled_from(
        [
            "<tool_call>", "</tool_call>", "<tool_call", '{"name": "look"', ', "arguments": ', "{}",
            "}", '{"a": "}</tool_call>"}', '"x"', "null", "Hello. ", "\n", "\\",
        ]
    ),
    st.builds(call, st.sampled_from(NAMES), arguments),
    st.builds(lambda name, args: tagged(call(name, args)), st.sampled_from(NAMES), arguments),
)  # fmt: skip
places = st.lists(st.integers(0, 400), max_size=30)


@pytest.mark.parametrize("syntax", [TAGGED, BARE], ids=["tagged", "bare"])
@given(parts=st.lists(fragments, max_size=6), cuts=places)
def test_how_a_text_is_split_changes_nothing(
    syntax: ToolSyntax, parts: list[str], cuts: list[int]
) -> None:
    text = "".join(parts)
    whole = parsed(ToolCallParser(syntax, NAMES), [text])
    assert parsed(ToolCallParser(syntax, NAMES), cut(text, cuts)) == whole
    assert parsed(ToolCallParser(syntax, NAMES), list(text)) == whole


@given(
    before=st.text(alphabet="ab .\n", max_size=10),
    calls=st.lists(st.tuples(st.sampled_from([*NAMES, "other"]), arguments), max_size=3),
    between=st.sampled_from(["", "\n", "  \n"]),
    cuts=places,
)
def test_tagged_calls_are_what_a_plain_reading_finds(
    before: str, calls: list[tuple[str, dict[str, Any]]], between: str, cuts: list[int]
) -> None:
    text = before + between.join(tagged(call(*each)) for each in calls)
    content, found = parsed(ToolCallParser(TAGGED, NAMES), cut(text, cuts))
    assert [(name, json.loads(args)) for name, args in found] == calls
    assert content == (before.rstrip() if calls else before)


@given(st.sampled_from(NAMES), arguments, st.sampled_from(["arguments", "parameters"]), places)
def test_an_answer_that_is_one_bare_call(
    name: str, args: dict[str, Any], key: str, cuts: list[int]
) -> None:
    text = call(name, args, key)
    content, found = parsed(ToolCallParser(BARE, NAMES), cut(text, cuts))
    assert content == ""
    assert [(each, json.loads(text)) for each, text in found] == [(name, args)]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello  ", "Hello  ", []),
        ("\n\n<tool_call>\n" + call("go", {}) + "\n</tool_call>\n", "", [("go", "{}")]),
        ("a <tool_call>" + call("go", {}), "a", [("go", "{}")]),
        ('<tool_call>{"arguments": {"x": 1}, "name": "go"}</tool_call>', "", [("go", '{"x": 1}')]),
        ('<tool_call>{"name": "go"}</tool_call> end ', "end ", [("go", "{}")]),
        ('<tool_call>{"name": "go", "arguments": "{}"}</tool_call>', "", [("go", "{}")]),
        ('<tool_call>{"name": "go", "arguments": {"x": "a', "", [("go", '{"x": "a')]),
        ("<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
        ("<tool_call>cut", "<tool_call>cut", []),
        ("a < b", "a < b", []),
    ],
)
def test_tagged_answers(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(ToolCallParser(TAGGED, NAMES), [text]) == (content, calls)


@pytest.mark.parametrize(
    "text",
    ['{"name": "nobody", "arguments": {}}', '{"x": 1} and more', "plain {", '{"name": "look"', "{"],
)
def test_a_bare_answer_that_is_no_call_of_a_tool_is_text(text: str) -> None:
    assert parsed(ToolCallParser(BARE, NAMES), list(text)) == (text, [])


def test_the_name_comes_before_the_first_argument_and_arguments_as_they_come() -> None:
    parser = ToolCallParser(TAGGED, NAMES)
    head = '<tool_call>{"name": "look", "arguments": {'
    assert parser.push(head) == [CallPiece(0, "look", ""), CallPiece(0, None, "{")]
    assert parser.push('"at": "the') == [CallPiece(0, None, '"at": "the')]
    assert parser.push(' sky"}') == [CallPiece(0, None, ' sky"}')]
    assert parser.push("}</tool_call>") == []


TEMPLATE = {
    "start_anchor": "<|assistant|>",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "content": {"content": "text", "content_args": {"strip": False}},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "{content.name}", "arguments": "{content.arguments}"},
            },
        },
    },
}


def by_template() -> ResponseTemplateParser:
    return ResponseTemplateParser(ResponseParser(TEMPLATE, prefix="<|assistant|>"))


@given(st.lists(st.tuples(st.sampled_from(NAMES), arguments), max_size=3), places)
def test_a_response_template_finds_its_calls(
    calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    bodies = [re.sub("<", "\\\\u003c", call(*each)) for each in calls]
    text = "<think>hm</think>Right." + "".join(f"<call>{body}</call>" for body in bodies)
    content, found = parsed(by_template(), cut(text, cuts))
    assert content == "Right."
    assert [(name, json.loads(args)) for name, args in found] == calls


def test_a_call_that_a_response_template_cannot_read_stays_text() -> None:
    content, calls = parsed(by_template(), ["Ok.", "<call>{no", " json}", "</call>", "more"])
    assert content.startswith("Ok.{no json}")
    assert content.endswith("more")
    assert calls == []
