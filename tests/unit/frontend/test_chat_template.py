"""Chats with tools, by templates that know of them and by those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pdray.core.errors import InvalidRequestError
from pdray.frontend.text import Tokenizer
from pdray.frontend.tool_calls import ToolCallParser
from pdray.frontend.tool_syntax import TAGGED, ToolSyntax

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks around.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
HISTORY = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "a cat", "tool_call_id": "c1", "name": "look"},
    {"role": "tool", "content": "a dog", "tool_call_id": "c2", "name": "look"},
]

LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
TAGS = (
    "{% if tools %}[system]{{ tools | tojson }}{% endif %}" + LOOP + "{% for c in m.tool_calls %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
BARE = (
    "{% if tools %}[system]{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]\n"
    '{% if m.tool_calls %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
XML = (
    "{% if tools %}[system]{{ tools | tojson }}{% endif %}" + LOOP + "{% for c in m.tool_calls %}"
    "<function={{ c.function.name }}></function>{% endfor %}{% endfor %}[assistant]"
)
NO_TOOLS = LOOP + "\n{% endfor %}[assistant]"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
)


def with_template(source: Path, folder: Path, template: str | None) -> Tokenizer:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((source / "config.json").read_text())
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "syntax"),
    [
        (TAGS, TAGGED),
        (BARE, ToolSyntax(begin="", end="", arguments_key="parameters")),
        (XML, None),
        (NO_TOOLS, TAGGED),
        (None, TAGGED),
    ],
    ids=["tags", "bare", "xml", "no tools", "no template"],
)
def test_the_template_shows_how_calls_are_written(
    tiny_model_path: Path, tmp_path: Path, template: str | None, syntax: ToolSyntax | None
) -> None:
    assert with_template(tiny_model_path, tmp_path, template).tool_syntax == syntax


def test_a_template_that_knows_tools_gets_the_chat_as_it_is(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    text = with_template(tiny_model_path, tmp_path, TAGS).render_chat(HISTORY, [TOOL])
    assert text == (
        '[system][{"type": "function", "function": {"name": "look", '
        '"description": "Looks around.", '
        '"parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}][user]Hi'
        '[assistant]<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>'
        "[tool]a cat[tool]a dog[assistant]"
    )


@pytest.mark.parametrize("template", [NO_TOOLS, None], ids=["no tools", "no template"])
def test_a_template_without_tools_gets_them_in_plain_turns(
    tiny_model_path: Path, tmp_path: Path, template: str | None
) -> None:
    tokenizer = with_template(tiny_model_path, tmp_path, template)
    text = tokenizer.render_chat(HISTORY, [TOOL])
    system, user, call, results = (
        ("[system]", "[user]", "[assistant]<tool_call>", "[user]<tool_response>")
        if template
        else ("System: ", "User: Hi", "Assistant: <tool_call>", "User: <tool_response>")
    )
    assert text.startswith(system)
    assert '"description": "Looks around."' in text
    assert text.index(user) < text.index(call) < text.index(results) < text.index("a dog")
    assert text.count("<tool_response>") == 2
    assert text.count(results) == 1
    without = tokenizer.render_chat([USER], ())
    assert "function" not in without


def test_a_template_without_a_system_turn_gets_tools_in_the_first_users(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    text = with_template(tiny_model_path, tmp_path, NO_SYSTEM).render_chat([USER], [TOOL])
    assert text.startswith("[user]You can call")
    assert text.endswith("\n\nHi\n[assistant]")


def test_calls_that_cannot_be_read_are_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    tokenizer = with_template(tiny_model_path, tmp_path, XML)
    with pytest.raises(InvalidRequestError, match="response template") as caught:
        tokenizer.answer_parsers("", [TOOL])
    assert caught.value.param == "tools"


def test_special_tokens_are_shown_where_they_are_wanted(tiny_model_path: Path) -> None:
    tokenizer = Tokenizer(tiny_model_path)
    ids = [64, 256, 65]
    assert tokenizer.decode(ids) == "ab"
    shown = tokenizer.with_special_tokens()
    assert shown.decode(ids) == "a<bos>b"
    detokenizer = shown.detokenizer()
    assert detokenizer.push(ids) + detokenizer.flush() == "a<bos>b"
    assert isinstance(tokenizer.answer_parsers("", [TOOL])(), ToolCallParser)
